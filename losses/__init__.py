"""Computes log-probabilities from hidden states, and from them one loss per pair; knows tensors only."""
