"""Large batches on many accelerators: 2,048 images per step, in bfloat16, with LAMB.

    python main.py --config=configs/large_batch.py --workdir=runs/large_batch

Run it on 8 devices or more; docs/scaling.md covers several machines. It has not been trained at
this size yet; docs/results.md has a run with 256 images. The choices and their reasons:

- **P = 256 people, K = 8 images.** The batch grows in people first. Each anchor then finds its
  hardest negative among 255 people instead of 15, which is the benefit of a large batch to the
  triplet loss. K grows too, because few data sets have enough people otherwise: Market-1501 has
  751, and a batch holds nobody twice. With 10,000 people or more, use K = 4.
- **LAMB.** It scales the step of each layer to the size of its weights, so that no layer diverges
  at large rates. Adam's moments suit the distillation terms, whose gradients differ in size from
  those of the identity loss. LARS (``--config.optim.name=lars``, with ``scaling=linear`` and a rate
  of about 0.3 at 64 images) is the alternative with plain momentum.
- **A rate proportional to the square root of the batch size**, from 9e-4 at 64 images to 5.1e-3 at
  2,048. R. Wightman, H. Touvron, H. Jégou, "ResNet strikes back" (arXiv 2110.00476) train ResNet-50
  from scratch with this rate at this batch size, also with a decay of 0.02 and a cosine schedule.
  With pretrained weights, start lower.
- **Warm-up over 10 epochs, and clipping at a gradient norm of 5.** An epoch now has few steps, and
  large batches diverge if the first steps run at the full rate.
- **bfloat16 for convolutions and products.** It takes half the memory and is at least twice as fast
  on today's accelerators. Parameters, batch statistics, pooled features and losses stay float32,
  which distances of near-equal embeddings and sums over 2,048 images need.
- **An average of the parameters** over about the last hundred steps, which is scored as well: large
  rates leave the last step noisy.
- **No rematerialisation.** 64 images take 2.8 of a TPU v5e's 16 GiB (docs/scaling.md), so about 350
  fit. For more, ``--config.model.remat=convolutions`` trades time for memory. Accumulation does
  too, but each part mines its own triplets, so training differs.
- **More than 20,000 people**: split the classifiers with ``--config.mesh.model=8``.
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
