"""Seeded generators of broken inputs, and the judge of their outcomes."""
