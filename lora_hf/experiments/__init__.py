"""Experiments: several runs, planned, started, summarized and reported."""
