"""Defines and checks every setting of a run, and refuses a mistake with a message that names the way out."""
