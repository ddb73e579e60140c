"""Strategies, their privacy, and the server's evaluation."""
