"""The public HTTP cache tests: `python -m benchmarks.conformance`, and `app`, what they are run against."""
