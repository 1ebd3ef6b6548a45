"""How PyTorch's files name the weights of each kind of trunk; one table each."""
