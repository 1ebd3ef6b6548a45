"""Benchmarks: each is run as a module and prints one JSON line per measurement."""
