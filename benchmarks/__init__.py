"""Benchmarks: `make bench` runs all of them, `make bench-check` looks for regressions."""
