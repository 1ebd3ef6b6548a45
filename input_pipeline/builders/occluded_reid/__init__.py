"""Occluded-REID (see docs/datasets.md)."""
