"""A look at a configuration's data before training: statistics, samples and faults."""
