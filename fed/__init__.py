"""The federation: everything both clients and server use."""
