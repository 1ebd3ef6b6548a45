"""Recipes. Each sets only what differs from ``default.py``."""
