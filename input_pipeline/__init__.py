"""Everything between files on disk and batches on devices: data sets, sampling, augmentation.

TensorFlow reads its settings when it is imported, which every module here does late or after this.
"""

import os

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # what JAX sets if it is imported before
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # no noise at the start, and none of ended iterators
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nor oneDNN's; it only reads images
# Keeps the memory of one batch for the next: fresh pages cost more than what is done in them.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
