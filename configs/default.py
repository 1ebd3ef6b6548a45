"""Every option once, with the recipe that the field shares (docs/method.md, "Recipe defaults").

Any option can be set on the command line: ``--config.optim.learning_rate=1e-3``.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """ResNet-50 at 256x128, 120 epochs; expects a GPU or TPU."""
    return ConfigDict(
        {
            # Everything random follows from this: parameters, sampling, augmentation, bootstrap.
            "seed": 0,
            # Compiled programs are kept here from one start to the next; empty: nowhere.
            "compilation_cache": ".cache/jax",
            # First and last step to be traced into WORKDIR/profile, for TensorBoard's or XProf's
            # profile page, as in (20, 25).
            "profile": (),
            "data": {
                # A folder of input_pipeline/builders and, where it has several, one of its
                # configurations (docs/datasets.md).
                "dataset": "synthetic_occluded_reid/benchmark",
                # Where prepared data sets are kept.
                "data_dir": "data",
                # Where the data sets as published lie, folders or archives; needed once, to
                # prepare them (of one's own manifest, always).
                "manual_dir": "",
                # Encoded training images are held in memory up to this much; more of them, and
                # those of evaluation, are read from the disk when they are wanted.
                "memory_gib": 4.0,
                # Size of the network's input in pixels.
                "height": 256,
                "width": 128,
                # Normalisation of RGB in [0, 1]: ImageNet's statistics.
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                # P and K: a batch is P identities with K images each, over all devices.
                "identities_per_batch": 16,
                "images_per_identity": 4,
                "pose": {
                    # annotated · shuffled (each image gets another's pose, a control) · none
                    "source": "annotated",
                    # Files of input_pipeline.poses (docs/poses.md): their poses take the place of
                    # the data set's own, matched by the images' content.
                    "files": (),
                    # Keypoints with less confidence do not draw.
                    "threshold": 0.2,
                    # Width of joints and limbs in part maps, as a fraction of the image height.
                    "sigma": 0.035,
                },
                "augment": {
                    # Probability of a left-right flip.
                    "flip": 0.5,
                    # Pixels of padding on each side before the random crop; 0 turns it off.
                    "pad": 10,
                    # Probability of random erasing, its range of area (fraction of the image) and
                    # the lowest aspect ratio (the highest is its inverse).
                    "erasing": 0.5,
                    "erasing_area": (0.02, 0.4),
                    "erasing_aspect": 0.3,
                },
            },
            "model": {
                # resnet8 (small images, CPU) · resnet18 · resnet34 · resnet50 ·
                # resnet50_ibn_a
                "backbone": "resnet50",
                # PyTorch weights of that backbone, .pth or .safetensors, to start from; empty:
                # random ones. They expect images normalised as data.mean and data.std say
                # (docs/pretrained.md).
                "pretrained": "",
                # Pooling of the main branch: gap · gem
                "pooling": "gap",
                # False: the baseline, the main branch alone in training too.
                "pose_branches": True,
                # Of convolutions and matrix products: float32 · bfloat16. Parameters, statistics,
                # pooled features and losses are float32 in any case.
                "dtype": "float32",
                # What the backward pass computes again to save memory: none · convolutions (keeps
                # their results; all between them again) · blocks (keeps the blocks' inputs alone)
                "remat": "none",
            },
            "loss": {
                # Weights. A loss of weight 0 is neither computed nor reported.
                "identity": 1.0,
                "triplet": 1.0,
                "alignment": 0.3,
                "semantic": 0.3,
                "feature_kd": 3.0,
                "logit_kd": 0.0,
                "interaction": 0.0,
                # Label smoothing of the identity loss.
                "smoothing": 0.1,
                # Margin of the triplet loss, and whether the soft margin takes its place.
                "margin": 0.3,
                "soft_margin": False,
                # Temperature of the logit distillation.
                "temperature": 4.0,
                # energy · cosine
                "alignment_variant": "energy",
                # off · cross_classifier · cross_triplet (these two weighed by "interaction") ·
                # shared_classifier
                "interaction_variant": "off",
                # Epoch at which distillation starts, and epochs over which it grows to its weight.
                "kd_start": 0.0,
                "kd_ramp": 0.0,
            },
            "optim": {
                # adam (L2 decay) · adamw (decoupled decay) · sgd (momentum, L2 decay) · lars · lamb
                "name": "adam",
                "learning_rate": 3.5e-4,
                # What becomes of the rate if the batch is not base_batch_size: none · linear
                # (times their ratio) · sqrt (times its root)
                "scaling": "none",
                "base_batch_size": 64,
                "weight_decay": 5e-4,
                # Of sgd and lars.
                "momentum": 0.9,
                # Of lars: a layer's step relative to its weights, at a rate of 1.
                "trust_coefficient": 0.001,
                # Gradients longer than this, over all parameters, are shortened to it; 0: never.
                "clip_norm": 0.0,
                # Decay of a running average of the parameters, scored too; 0: none is kept.
                "ema_decay": 0.0,
                # step (times decay_factor at each milestone) · cosine (to zero)
                "schedule": "step",
                # Linear warm-up from warmup_factor times the rate.
                "warmup_epochs": 10.0,
                "warmup_factor": 0.01,
                # Epochs.
                "milestones": (40.0, 70.0),
                "decay_factor": 0.1,
            },
            "mesh": {
                # Devices are arranged as data x model; -1: all that there are. The batch is split
                # over all of them, the identity classifiers over "model" (docs/scaling.md).
                "data": -1,
                "model": 1,
            },
            "train": {
                # An epoch is as many steps as batches fit into the training images.
                "epochs": 120.0,
                # Parts that a batch is computed in, one after the other, to save memory. Each part
                # mines its own triplets and takes its own batch statistics (docs/scaling.md).
                "accumulation": 1,
                # Steps between progress lines, evaluations and checkpoints.
                "log_every": 50,
                "eval_every": 2000,
                "checkpoint_every": 1000,
            },
            "eval": {
                # Data sets to evaluate on, the first one's first protocol deciding the best step;
                # none named: data.dataset itself.
                "datasets": (),
                # What --mode=evaluate takes: newest · best (by the first protocol's mAP) ·
                # untrained (no run is needed)
                "checkpoint": "newest",
                # Images per evaluation batch, over all devices.
                "batch_size": 256,
                # main (images alone) · foreground, parts (the teachers, with the test set's poses)
                "embeddings": ("main",),
                # Length of the CMC curve.
                "max_rank": 50,
                # Edges of the bins of query occlusion that are scored apart.
                "occlusion_bins": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0),
                # Resamples of the 95 % intervals over queries.
                "bootstrap_resamples": 1000,
            },
        }
    )
