"""Poses from public pose files or from the user's own ONNX model, as one file for training."""
