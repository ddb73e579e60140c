"""Holds the framework in nine subfolders, none of which imports `clients/` or `server/`."""
