"""Runs of the scripts, measurements, and what is made of them; everything starts as `python -m benchmarks.<name>`."""
