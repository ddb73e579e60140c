"""What can be typed, and how a mistake is refused."""
