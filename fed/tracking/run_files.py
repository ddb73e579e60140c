"""The names of the files in a run's folder."""

CONFIG = "config.yaml"  # the resolved settings
ENVIRONMENT = "environment.json"  # versions, machine, command line
PARTITION_FILE = "partition.json"  # the rows of each client
METRICS = "metrics.jsonl"  # see fed/tracking/metrics.py
MARGINS = "margins.jsonl"  # the reward margin of each test pair, by evaluation
TIMING = "timing.jsonl"  # the wall time of each evaluation; in a file of its own, since no two runs take the same
SAMPLES = "samples.jsonl"  # responses drawn during evaluation
FAILURES = "failures.log"  # tracebacks of clients that were left out
SUMMARY = "summary.json"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"  # a folder of event files
