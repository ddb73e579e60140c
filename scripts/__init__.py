"""One command per file: compare, sweep, bench, scale, convert, deploy."""
