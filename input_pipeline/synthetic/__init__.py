"""Procedural pedestrians under occlusion: people, cameras, occluders and detector boxes, no photos.

Worker processes import this package, so nothing in it imports TensorFlow: NumPy and OpenCV only.
"""
