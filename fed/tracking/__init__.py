"""Writes the log of a run: metrics, TensorBoard, progress on the console, and the files of its folder."""
