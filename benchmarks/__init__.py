"""The speed of each promise beside its peers, in one run: `python -m benchmarks`."""
