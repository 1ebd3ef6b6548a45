"""What a good PyTorch engineer would write instead: the yardstick of speed.

The same networks and losses as pgfl_jax's, written for PyTorch's speed: channels-last, autocast,
fused Adam, ``torch.compile`` over network and loss together, matrices of TF32 where float32 is
asked for on a GPU. For embedding, BatchNorm is folded into the convolutions, by hand, and the
weights are constants of the compiled program (``freezing``). The twin in :mod:`studies.pytorch` is
written to be compared, and slower.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgfl_jax.config import Config
from pgfl_jax.experiment import Experiment
from pgfl_jax.export import torch_model
from studies.pytorch import models
from studies.pytorch.compare import fresh_twin
from studies.pytorch.losses import total_loss
from studies.pytorch.train_step import to_tensors

Batch = Mapping[str, np.ndarray]
Repeat = Callable[[int], None]


class Network(nn.Module):
    """Trunk with PyTorch's own BatchNorm, and the branches of the twin."""

    def __init__(self, twin: models.PGFL):
        """Take over the twin's modules."""
        super().__init__()
        self.heads, self.dtype = twin, twin.dtype
        for name, module in list(twin.named_modules()):
            if isinstance(module, torch_model.BatchNorm):
                parent, _, last = name.rpartition(".")
                setattr(twin.get_submodule(parent), last, nn.BatchNorm2d(module.num_features))
        if not isinstance(twin.main_pooling, torch_model.PredictedPooling):
            twin.main_neck = nn.BatchNorm1d(twin.trunk.channels)
            twin.main_neck.bias.requires_grad_(False)
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Nothing reads the count, and each would be a kernel of its own on a GPU.
                module.num_batches_tracked = None

    def pooled(self, images: Tensor) -> tuple[Tensor, torch_model.Pooled]:
        """The feature map of (B, 3, H, W), pooled for the main branch, too."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            features = self.heads.trunk(images)
        features = features.float()
        return features, self.heads.main_pooling(features)

    def neck(self, pooled: torch_model.Pooled) -> Tensor:
        """The main branch's BNNeck, PyTorch's own unless parts are weighed by what is seen."""
        weights = () if pooled.seen is None else (pooled.seen,)
        return self.heads.main_neck(pooled.embedding, *weights)

    def main(self, pooled: torch_model.Pooled) -> models.BranchOutputs:
        """The main branch."""
        neck = self.neck(pooled)
        with torch.autocast(neck.device.type, self.dtype, enabled=self.dtype is not None):
            logits = F.linear(neck, self.heads.main_classifier.weight)
        return models.BranchOutputs(pooled.embedding, neck, logits.float())

    def forward(self, images: Tensor, part_maps: Tensor, visibility: Tensor) -> models.PGFLOutputs:
        """All branches of (B, 3, H, W) images, with maps (B, G, h, w)."""
        heads = self.heads
        features, pooled = self.pooled(images)
        main = self.main(pooled)
        if not heads.pose_branches:
            return models.PGFLOutputs(features, main, None, None, None)
        has_pose = models.pose_mask(visibility)
        visible = (visibility > 0).to(visibility.dtype)
        foreground = torch_model.part_pooling(features, part_maps.amax(1, keepdim=True))
        parts = torch_model.part_pooling(features, part_maps)
        return models.PGFLOutputs(
            features,
            main,
            heads._branch(foreground, heads.foreground_neck, "foreground", has_pose),
            heads._branch(parts, heads.parts_neck, "parts", visible),
            None,
            pooled.map_logits,
            pooled.features,
        )


def _main_loss(main: models.BranchOutputs, labels: Tensor, config: Config) -> Tensor:
    """Identity and batch-hard triplet loss of the main branch, in the fewest operations."""
    loss = config.loss
    identity = F.cross_entropy(main.logits, labels, label_smoothing=loss.smoothing)
    distances = torch.cdist(main.embedding, main.embedding)
    same = labels[:, None] == labels[None]
    positive = distances.masked_fill(~same, -1).amax(1)
    negative = distances.masked_fill(same, 1e9).amin(1)
    triplet = F.relu(positive - negative + loss.triplet_margin).mean()
    return loss.identity * identity + loss.triplet * triplet


def _device() -> str:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def train(experiment: Experiment, batch: Batch, mode: str | None) -> Repeat:
    """Training steps; ``mode`` of ``torch.compile``, None: op by op."""
    device, config = _device(), experiment.config
    network = Network(fresh_twin(experiment)).to(device, memory_format=torch.channels_last)
    placed = {name: tensor.to(device) for name, tensor in to_tensors(batch).items()}
    images = placed["images"].permute(0, 3, 1, 2)  # channels-last already
    part_maps = placed["part_maps"].permute(0, 3, 1, 2).contiguous()
    visibility, labels = placed["visibility"], placed["labels"]
    losses = {"labels": labels, "part_maps": placed["part_maps"], "visibility": visibility}

    def loss() -> Tensor:
        if not config.model.pose_branches:
            return _main_loss(network.main(network.pooled(images)[1]), labels, config)
        outputs = network(images, part_maps, visibility)
        return total_loss(outputs, losses, config.loss, epoch=1e6)[0]

    function = loss if mode is None else torch.compile(loss, mode=mode)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=3.5e-4, weight_decay=config.optim.weight_decay, fused=True
    )

    def repeat(times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad(set_to_none=True)
            function().backward()
            optimizer.step()
        _wait(device)

    return repeat


def _folded(network: Network) -> nn.Module:
    """Trunk without BatchNorm, for evaluation."""
    trunk = copy.deepcopy(network.heads.trunk).eval()
    for module in trunk.modules():
        children = dict(module.named_children())
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)] + [("0", "1")]
        for conv, norm in pairs:
            if isinstance(children.get(norm), nn.BatchNorm2d):
                fused = torch.nn.utils.fuse_conv_bn_eval(children[conv], children[norm])
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())
    return trunk


def embed(experiment: Experiment, batch: Batch, mode: str | None) -> Repeat:
    """Embedding of a batch by the main branch; ``mode`` as in :func:`train`."""
    device = _device()
    network = Network(fresh_twin(experiment)).eval()
    dtype = network.dtype or torch.float32
    trunk = _folded(network).to(device, dtype, memory_format=torch.channels_last)
    network.heads.main_pooling.to(device)
    network.heads.main_neck.to(device)
    images = to_tensors(batch)["images"].to(device, dtype).permute(0, 3, 1, 2)

    def run(x: Tensor) -> Tensor:
        return F.normalize(network.neck(network.heads.main_pooling(trunk(x).float())))

    if mode is not None:
        import torch._inductor.config as inductor

        inductor.freezing = True
        run = torch.compile(run, mode=mode)

    def repeat(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                run(images)
        _wait(device)

    return repeat
