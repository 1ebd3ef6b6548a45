"""Several processes and devices: how they start, agree, share arrays and stop."""
