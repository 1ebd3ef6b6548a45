"""How PyTorch's files name the weights of each kind of trunk; one table each."""

from pgfl_jax.weight_tables.convnext import CONVNEXT
from pgfl_jax.weight_tables.osnet import OSNET
from pgfl_jax.weight_tables.resnet import RESNET
from pgfl_jax.weight_tables.swin import SWIN
from pgfl_jax.weight_tables.vit import VIT

TABLES = (RESNET, VIT, SWIN, CONVNEXT, OSNET)
