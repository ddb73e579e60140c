"""Aggregates what clients send: the strategies, their privacy, and the server's evaluation; sees no client's rows."""
