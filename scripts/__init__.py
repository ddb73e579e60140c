"""Commands beside `main.py`: compare, sweep, bench, gpu_check, scale, convert, deploy; and their shared modules."""
