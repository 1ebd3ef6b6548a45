"""Studies that compare whole training runs; pgfl_jax does not depend on them."""
