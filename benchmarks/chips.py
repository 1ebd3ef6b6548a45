"""The chips that programs are compiled for without having one: their compilers and peak rates.

v5e, from https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s in bf16 (in which the matrix unit also
multiplies float32 by default), 16 GB of HBM2 at 819 GB/s, and an interconnect of 1600 Gbit/s: 400
in each direction on each of four links. We assume that a chip sends 200 GB/s, over all four at
once. Below 16x16 the torus is open and some links are unused, so the bound is loose.

H100 SXM, from https://www.nvidia.com/en-us/data-center/h100/ and the guide to DGX H100: 989 TFLOP/s
in bf16, 80 GB of HBM3 at 3,350 GB/s, NVLink with 450 GB/s in each direction among the eight GPUs of
a machine, and one 400 Gbit/s adapter per GPU between machines.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks.hlo import Collective
from pgfl_jax.errors import UserError

# For compiling only: no metadata server, no other hosts, no chips to lock, no libraries of CUDA,
# no logs.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        compiler: the module that contains its compiler.
        distribution: the compiler's package.
        install: how to get it.
        memory_gib: size of the main memory, which programs cannot quite use up.
        tflop_per_second: of products in bfloat16.
        hbm_gb_per_second: of the main memory.
        link_gb_per_second: what a chip sends over the fast interconnect.
        machine: how many chips the fast interconnect joins; 0: all of them.
        network_gb_per_second: what a chip sends to other machines.
        options: of its compiler.
    """

    compiler: str
    distribution: str
    install: str
    memory_gib: int
    tflop_per_second: float
    hbm_gb_per_second: float
    link_gb_per_second: float
    machine: int = 0
    network_gb_per_second: float = 0.0
    options: dict[str, float] = dataclasses.field(default_factory=dict)


CHIPS = {
    "v5e": Chip(
        compiler="libtpu",
        distribution="libtpu",
        install="pip install -e '.[tpu]'",
        memory_gib=16,
        tflop_per_second=197.0,
        hbm_gb_per_second=819.0,
        link_gb_per_second=200.0,
        # The least optimisation; docs/scaling.md says what that changes.
        options={"exec_time_optimization_effort": -1.0},
    ),
    "h100": Chip(
        compiler="jax_cuda13_plugin",
        distribution="jax-cuda13-pjrt",
        install="pip install -c constraints.txt --no-deps --target .cache/cuda jax-cuda13-plugin "
        "jax-cuda13-pjrt; then PYTHONPATH=.cache/cuda",
        memory_gib=79,
        tflop_per_second=989.0,
        hbm_gb_per_second=3350.0,
        link_gb_per_second=450.0,
        machine=8,
        network_gb_per_second=50.0,
    ),
}

# What the compiler needs to know about the chip; the numbers are the manufacturer's.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def chip_of(topology: str) -> Chip:
    """The chip of a topology, such as ``v5e:4x4`` or ``h100:8``.

    Raises:
        UserError: the topology is malformed, or the chip's compiler is not installed.
    """
    if not re.fullmatch(r"v5e:\d+x\d+|h100:[1-9]\d*", topology):
        raise UserError(f"--topology={topology}: must look like v5e:4x4 or h100:8")
    name, _, size = topology.partition(":")
    chip = CHIPS[name]
    if chip.machine and int(size) > chip.machine and int(size) % chip.machine:
        raise UserError(f"--topology={topology}: must fill its machines of {chip.machine} chips")
    if importlib.util.find_spec(chip.compiler) is None:
        raise UserError(f"{chip.compiler} is not installed: {chip.install}")
    return chip


def topology_devices(topology: str) -> list[Any]:
    """The chips of a topology, ``v5e:ROWSxCOLUMNS`` or ``h100:COUNT``, in order of their processes.

    Raises:
        UserError: the topology is malformed, or the compiler is not installed or does not know it.
    """
    chip = chip_of(topology)
    size = topology.partition(":")[2]
    if chip is CHIPS["h100"]:
        machine = min(int(size), chip.machine)
        shape = f"1x{int(size) // machine}x{machine}"
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_H100, topology=shape
        ).devices
    # A host has four chips, or one in the smallest topology.
    options: dict[str, Any] = {"topology_name": topology}
    if size == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology={topology}: {reason}") from error


def interconnect_seconds(chip: Chip, collectives: Iterable[Collective]) -> float:
    """The least time that a chip takes to send what its collectives need.

    Larger groups than a machine fill their machines. What they send to others is shared by the
    adapters of the machine, while its own chips exchange the rest.

    >>> reduce = Collective("all-reduce", bytes=800_000_000, group=16)
    >>> interconnect_seconds(CHIPS["h100"], [reduce])  # 2 · 15/16 · 800 MB by NVLink
    0.0033333333333333335
    """
    seconds = 0.0
    for each in collectives:
        own = each.sent_bytes / (1e9 * chip.link_gb_per_second)
        beyond = 0.0
        if chip.machine and each.group > chip.machine:
            whole = dataclasses.replace(each, group=each.group // chip.machine).sent_bytes
            # The chips of a machine have the same result there, or a different one each.
            shared = chip.machine if each.kind in ("all-reduce", "all-gather") else 1
            beyond = whole / shared / (1e9 * chip.network_gb_per_second)
        seconds += each.times * max(own, beyond)
    return seconds
