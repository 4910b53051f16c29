"""Side-by-side timings. Run with ``python -m tests.benchmarks``."""
