"""Comparisons of whole trainings; nothing in pgfl_jax needs them."""
