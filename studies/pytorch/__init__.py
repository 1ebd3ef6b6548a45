"""The PyTorch twin: the same method in another framework, and the proof that it is the same."""
