"""Loads the policy and computes with it: log-probabilities, references, responses; reads and writes its weights."""
