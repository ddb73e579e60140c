"""The framework: nine subfolders, none of which imports `clients/` or `server/`."""
