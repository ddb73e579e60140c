"""The framework: nine wings, each a folder, that know neither clients nor server."""
