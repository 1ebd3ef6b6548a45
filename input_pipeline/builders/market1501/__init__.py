"""Market-1501 (see docs/datasets.md)."""
