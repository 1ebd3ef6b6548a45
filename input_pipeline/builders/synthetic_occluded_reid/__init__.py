"""Procedural occluded pedestrians (see `input_pipeline.synthetic`)."""
