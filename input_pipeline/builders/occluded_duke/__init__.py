"""Occluded-Duke (see docs/datasets.md)."""
