"""Sets how a run uses the CPU: its threads, its memory, and the library that multiplies matrices, MKL or oneDNN."""
