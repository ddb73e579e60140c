"""What several runs say together, from their folders; nothing here trains."""
