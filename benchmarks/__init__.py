"""Timings of fastvivit beside its strongest peers, and the compile report. ``python -m benchmarks.run``."""
