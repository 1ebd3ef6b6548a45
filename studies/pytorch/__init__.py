"""The PyTorch twin: the same method in another framework, and the comparison that proves it."""
