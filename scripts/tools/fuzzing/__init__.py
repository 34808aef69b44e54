"""Broken inputs, made from whole ones by a seed, and the judgement of what becomes of each."""
