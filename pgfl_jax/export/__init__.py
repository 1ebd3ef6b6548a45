"""The embed function of a trained run in the formats of other runtimes."""
