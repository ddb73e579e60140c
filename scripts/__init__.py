"""Commands beside `main.py`: compare, sweep, bench, scale, convert, deploy; and the modules that they share."""
