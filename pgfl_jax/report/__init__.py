"""What a run tells its user: the terminal, ``metrics.jsonl``, TensorBoard, the manifest."""
