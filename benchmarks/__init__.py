"""Benchmarks: `python -m benchmarks` runs all, `python -m benchmarks.<name>` one; `--quick` for a short run.

Each script compares ways to do one job, in turn, within one run (`harness.compare`), so that a busy machine is busy for
all of them alike. It shows tables of CPU time and throughput with medians, and ratios to the first way: quote those.
"""
