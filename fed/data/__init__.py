"""Rows, who owns them, token ids, batches."""
