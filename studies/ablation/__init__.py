"""The study that chooses the defaults: which parts of the method work (docs/method.md)."""
