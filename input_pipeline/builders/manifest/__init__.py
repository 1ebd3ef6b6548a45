"""Data sets that a user lists in a table (see docs/datasets.md)."""
