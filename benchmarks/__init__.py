"""Speed and memory, by pytest-benchmark: `pytest --benchmark-only`. Results of runs that happened lie in `results/`."""
