"""How a CPU computes: threads, memory, MKL or oneDNN."""
