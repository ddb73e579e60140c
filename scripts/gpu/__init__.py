"""Measures and tests on a GPU, part by part."""
