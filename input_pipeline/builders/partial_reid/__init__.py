"""Partial-REID (see docs/datasets.md)."""
