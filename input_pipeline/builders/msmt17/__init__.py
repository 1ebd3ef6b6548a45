"""MSMT17 (see docs/datasets.md)."""
