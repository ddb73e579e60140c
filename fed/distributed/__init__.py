"""Starts the processes of a run, joins them, and splits a model over them with FSDP and tensor parallelism."""
