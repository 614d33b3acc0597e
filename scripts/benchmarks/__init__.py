"""Benchmarks in ratios: what climafuse does against what it must at least cost. `scripts/bench` runs them.

Seconds depend on the machine and on who else is using it; ratios hardly do, as long as both sides are measured in turn.
Each section is a file with a function `rows(size)` that yields what it measured.
"""
