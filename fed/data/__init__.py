"""Turns preference rows into batches of token ids: who owns a row, how it is tokenized, in which order pairs come."""
