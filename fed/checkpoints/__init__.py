"""Checkpoints: everything that a run needs to resume, on the disk."""
