"""Partial-iLIDS (see docs/datasets.md)."""
