"""Benchmarks. Each runs as a module and prints one JSON line per measurement."""
