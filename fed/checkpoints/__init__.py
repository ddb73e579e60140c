"""Everything needed to continue, on the disk."""
