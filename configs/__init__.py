"""Recipes: each changes what differs from ``default.py``."""
