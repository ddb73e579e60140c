"""The one model: loaded, run, scored, sampled."""
