"""Writes all that a run needs to resume to the disk and reads it back: weights, clients' states, a round's replies."""
