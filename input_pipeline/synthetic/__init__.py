"""Procedural pedestrians under occlusion: people, cameras, occluders and detector boxes, no photos.

Worker processes import this package, so it needs only NumPy and OpenCV, not TensorFlow.
"""
