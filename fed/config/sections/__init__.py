"""The keys without a point in their name, one file for each section of docs/settings.md."""
