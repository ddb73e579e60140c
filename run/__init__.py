"""Puts one run together and carries it out on any engine; the only place where clients and server meet."""
