"""Keeps on the disk everything that a run needs to resume: weights, clients' states and the round's replies."""
