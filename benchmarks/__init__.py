"""Benchmarks: one script a capability, `python -m benchmarks.<name>`; `--quick` for a short run.

Each compares ways to do one job, in turn, within one run (`harness.compare`), so that a busy machine is busy for all of
them alike. It prints CPU time and throughput with medians, and ratios to the first way: quote the ratios.
"""
