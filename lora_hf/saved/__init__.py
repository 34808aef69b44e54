"""Saved adapters and models: use, merge, export, push."""
