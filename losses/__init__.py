"""Turns log-probabilities into one loss per pair; knows tensors only."""
