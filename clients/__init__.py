"""Trains and evaluates one client's model, and keeps the client's state between rounds."""
