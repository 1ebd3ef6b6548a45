"""Everything between files on disk and batches on devices: data sets, sampling, augmentation.

TensorFlow reads its settings on import, so they are set here, before any module imports it.
"""

import os

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1 if it is imported first
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # no messages at start-up or about ended iterators
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nor from oneDNN; reading images needs none
# Reuses the memory of one batch for the next: fresh pages cost more than the work on them.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
# TensorFlow would import Keras, Matplotlib and pandas with it, for seconds; nothing uses them.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
