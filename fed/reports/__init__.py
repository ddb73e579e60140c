"""Draws pictures, tables and pages of finished runs; reads their folders and nothing else."""
