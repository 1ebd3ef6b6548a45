"""Everything between files on disk and batches on devices: data sets, sampling, augmentation."""
