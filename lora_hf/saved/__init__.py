"""Saved adapters and models: find, generate, evaluate, merge, export, push."""
