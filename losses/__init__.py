"""Log-probabilities in, one number per pair out; knows tensors only."""
