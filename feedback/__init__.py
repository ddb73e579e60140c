"""Asks models and people: responses, judges, labels; rows come out."""
