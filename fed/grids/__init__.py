"""How messages travel between strategy and clients."""
