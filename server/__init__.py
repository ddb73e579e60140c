"""What runs at the server. Meets clients in Flower messages only."""
