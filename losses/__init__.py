"""Loss functions: plain formulas on log-probabilities. Knows tensors only."""
