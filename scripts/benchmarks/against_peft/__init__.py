"""The parts of `scripts/benchmarks/bench.py`: workers that take turns, and what is asked of them."""
