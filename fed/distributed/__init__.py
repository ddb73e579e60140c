"""Processes, and a model split over them."""
