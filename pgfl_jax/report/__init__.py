"""What a run reports: terminal, ``metrics.jsonl``, TensorBoard, profile and manifest."""
