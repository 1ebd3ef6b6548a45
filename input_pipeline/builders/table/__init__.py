"""A user's own data, listed in a table (see docs/datasets.md)."""
