"""PGFL-KD in JAX: pose-guided feature learning with knowledge distillation for re-ID."""
