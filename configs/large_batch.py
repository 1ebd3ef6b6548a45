"""Large batches on many accelerators: 2,048 images a step, in bfloat16, with LAMB.

Run, on 8 devices or more (docs/scaling.md tells how on several machines):
``python main.py --config=configs/large_batch.py --workdir=runs/large_batch``. It has not been
trained at this size yet; docs/results.md has a run of 256 images. The choices and their reasons:

- **P = 256 people, K = 8 images.** The batch grows in people first: each anchor then looks for its
  hardest negative among 255 people in place of 15, which is what a large batch is worth to the
  triplet loss. K grows, too, because hardly any set has enough people otherwise (Market-1501 has
  751, and a batch holds nobody twice). On a set of 10,000 people and more, take K = 4.
- **LAMB.** The step of each layer is measured by the size of its weights, so that none of them
  diverges at large rates, and Adam's moments suit the distillation terms, whose gradients are of
  another size than those of the identity loss. LARS (``--config.optim.name=lars``, with
  ``scaling=linear`` and a rate of about 0.3 at 64 images) is the alternative for plain momentum.
- **The rate by the root of the batch size**, from 9e-4 at 64 images to 5.1e-3 at 2,048. That is
  what R. Wightman, H. Touvron, H. Jégou, "ResNet strikes back" (arXiv 2110.00476) train ResNet-50
  with from scratch at this batch size, with this decay, 0.02, and a cosine. With pretrained
  weights start lower.
- **Warm-up over 10 epochs, and clipping at a gradient norm of 5.** Few steps make an epoch now, and
  the first ones, at a full rate, are what large batches diverge by.
- **bfloat16 for convolutions and products.** Half the memory and twice the speed or more on any
  accelerator of today. Parameters, batch statistics, pooled features and losses stay float32:
  distances of near-equal embeddings and sums over 2,048 images need the digits.
- **An average of the parameters** over about the last hundred steps, scored beside them: large
  rates leave the last step noisy.
- **Nothing is computed twice**: 64 images take 2.8 of a TPU v5e's 16 GiB (docs/scaling.md), so
  some 350 fit. Beyond, ``--config.model.remat=convolutions`` trades time for memory.
  Accumulation does too, but its parts mine by themselves: it is not the same training.
- **More than 20,000 people**: split the classifiers, ``--config.mesh.model=8``.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """ResNet-50 at 256x128, 256 people with 8 images each."""
    config = default.get_config()
    config.data.identities_per_batch, config.data.images_per_identity = 256, 8
    config.model.dtype = "bfloat16"
    config.optim.name = "lamb"
    config.optim.learning_rate = 9e-4
    config.optim.scaling = "sqrt"
    config.optim.weight_decay = 0.02
    config.optim.schedule = "cosine"
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.99
    config.train.log_every, config.train.eval_every, config.train.checkpoint_every = 10, 200, 100
    config.eval.batch_size = 1024
    return config
