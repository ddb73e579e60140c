"""What becomes of a run when things go wrong: `python scripts/faults.py`, or `make faults`.

Kills real runs at random instants and resumes them, damages checkpoints, fills a disk, and types bad input; prints what
was counted and ends with exit code 1 if anything was lost.
"""
