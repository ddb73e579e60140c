"""What runs at a client. Meets the server in Flower messages only."""
