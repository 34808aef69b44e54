"""The parts of `scripts/bench.py`: workers that take turns, and what is asked of them."""
