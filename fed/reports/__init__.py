"""Pictures, tables and pages of finished runs."""
