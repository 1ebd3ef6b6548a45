"""P-DukeMTMC-reID (see docs/datasets.md)."""
