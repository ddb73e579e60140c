"""Delivers a strategy's messages to the clients and returns their replies, through Flower's `Grid` interface."""
