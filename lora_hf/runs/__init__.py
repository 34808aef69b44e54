"""One run: its stages, its directory and its lock."""
