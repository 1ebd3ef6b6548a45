"""A trained main branch as an object: ``load("runs/demo")(["a.jpg", "b.jpg"])`` → (2, D)."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from pgfl_jax import preprocessing
from pgfl_jax.checkpoint import read_main_branch
from pgfl_jax.config import Config
from pgfl_jax.distributed.devices import compiler_options, require_devices
from pgfl_jax.distributed.sharding import batch_sharding, make_mesh, replicated
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import make_model
from pgfl_jax.export.verify import RECORD
from pgfl_jax.models import PGFL, folded, unit_length
from pgfl_jax.preprocessing import NO_ARRAY, PictureError, list_pictures
from pgfl_jax.report.manifest import check_same_run, read_config

Variables = Mapping[str, Any]

_PER_DEVICE = 64
"""Pictures per device and batch, unless the caller says otherwise."""


def load(
    path: str | os.PathLike,
    *,
    checkpoint: str | int = "newest",
    parameters: str = "trained",
    dtype: str | None = None,
) -> "Embedder":
    """Load the main branch of a training run, or an exported ONNX or StableHLO artifact.

    Optimizer, classifiers and pose branches stay on disk. Nothing but the folder is needed.

    Args:
        path: the run's folder (``--workdir``), or the artifact's, which leaves no other choice.
        checkpoint: ``newest``, ``best`` (by the run's first protocol) or a step.
        parameters: ``trained``, or ``average`` for their running average (``optim.ema_decay``).
        dtype: of convolutions and products, ``float32`` or ``bfloat16``; None: the run's own.

    Returns:
        The embedder.

    Raises:
        UserError: the folder holds no run, no such checkpoint, a damaged one, one of another run,
            or no average; or JAX does not find the device that ``JAX_PLATFORMS`` names.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):  # an unset variable
        raise UserError(f"path = {path!r}: must be the folder of a training run")
    workdir = Path(path).expanduser()
    _check_choice("parameters", parameters, ("trained", "average"))
    _check_choice("dtype", dtype, (None, "float32", "bfloat16"))
    if (workdir / RECORD).is_file():
        from pgfl_jax.export.loading import load_artifact

        return load_artifact(workdir, checkpoint, parameters, dtype)
    try:
        config = read_config(workdir)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    stored = config
    require_devices()
    if dtype is not None:
        network = dataclasses.replace(config.model, dtype=cast(Any, dtype))
        config = dataclasses.replace(config, model=network)
    model = make_model(config, num_identities=1)  # the classifiers, which count them, stay on disk
    step, variables = read_main_branch(
        workdir, _abstract_variables(model, config), checkpoint=checkpoint, parameters=parameters
    )
    check_same_run(workdir, step, stored)
    # Absolute: the process may go to another folder before it exports.
    return Embedder(config, model, variables, step, workdir.absolute(), parameters)


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise UserError(f"{name} = {value!r}: must be one of {', '.join(map(repr, choices))}")


def _abstract_variables(model: PGFL, config: Config) -> dict[str, Any]:
    """Shapes of the variables that images alone reach at test time."""
    images = jax.ShapeDtypeStruct((1, config.data.height, config.data.width, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Embedder:
    """Pictures to retrieval embeddings, by the main branch alone.

    Attributes:
        config: of the run.
        model: the network; used with images alone.
        variables: ``params`` and ``batch_stats`` of trunk, pooling and BNNeck.
        step: training steps of the checkpoint.
        run: the folder of the run, if it is known.
        parameters: ``trained`` or ``average``.
    """

    config: Config
    model: PGFL
    variables: Variables
    step: int
    run: Path | None = None
    parameters: str = "trained"

    def __call__(
        self,
        pictures: Any,
        *,
        batch_size: int | None = None,
        on_unreadable: Callable[[PictureError], Any] | None = None,
    ) -> Float[np.ndarray, "pictures channels"]:
        """Embed pictures, on all local devices; a progress bar appears when it takes long.

        Args:
            pictures: a path, a folder (its pictures, sorted by path, those of its subfolders and
                of linked ones included; a broken link is unreadable), a PIL picture, an RGB array
                (H, W, 3) or (N, H, W, 3) uint8, or paths, PIL pictures and arrays of any sizes in a
                sequence, an array or an iterator, which may yield one object with new pixels
                each time.
            batch_size: pictures per batch, over all devices; None: 64 per device.
            on_unreadable: called with the error of each picture that cannot be read, which then
                gets a row of NaN; None: the first such error is raised.

        Returns:
            (N, D) float32 rows of unit length. The dot product of two rows is their cosine.

        Raises:
            PictureError: a picture that cannot be read, by name; a folder without pictures, or in
                a sequence; or something that is no picture.
            UserError: an embedding is not finite or has no length; it names the picture.
        """
        given, count = _one_by_one(pictures)
        parts = [np.zeros((0, self.dim), np.float32)]
        with tqdm(total=count, unit=" pictures", delay=2) as bar:
            batches = self._batches(given, self.batch_size(batch_size), on_unreadable)
            for rows in batches:
                parts.append(rows)
                bar.update(len(rows))
        return np.concatenate(parts)

    def batches(
        self,
        pictures: Any,
        *,
        batch_size: int | None = None,
        on_unreadable: Callable[[PictureError], Any] | None = None,
    ) -> Iterator[Float[np.ndarray, "_ channels"]]:
        """Yield what a call returns a batch at a time, for more than should be held at once.

        ``on_unreadable`` is called in the pictures' order, and before their batch is yielded.
        """
        given, _ = _one_by_one(pictures)
        return self._batches(given, self.batch_size(batch_size), on_unreadable)

    def batch_size(self, wanted: int | None) -> int:
        """The size of a batch when ``wanted`` is asked for: a multiple of the number of devices.

        Raises:
            UserError: ``wanted`` is below 1, or no whole number.
        """
        devices = self._mesh.size
        if wanted is not None and (not isinstance(wanted, int | np.integer) or wanted < 1):
            raise UserError(f"batch_size = {wanted!r}: must be a whole number above 0")
        return math.ceil((wanted or _PER_DEVICE * devices) / devices) * devices

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without what is compiled for the devices of this process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        """What it is, without its weights."""
        data, model = self.config.data, self.config.model
        return (
            f"Embedder({model.backbone}, {data.height}x{data.width} pixels to {self.dim} numbers, "
            f"{model.dtype}, step {self.step})"
        )

    @property
    def dim(self) -> int:
        """Length of an embedding, D."""
        return jax.tree.leaves(self.variables["params"]["main_neck"])[0].shape[0]

    def preprocess(self, picture: Any) -> UInt8[np.ndarray, "height width 3"]:
        """A path or an RGB array of any size as :meth:`apply` takes it, of the run's size."""
        return preprocessing.preprocess(picture, self.config.data.height, self.config.data.width)

    def apply(
        self, variables: Variables, images: Shaped[Array, "batch height width 3"]
    ) -> Float[Array, "batch channels"]:
        """The pure function: RGB in [0, 255], uint8 or float, to unit-length float32 rows.

        Normalisation is part of it. It may be jitted, differentiated and exported.

        Raises:
            ValueError: the images are not (N, H, W, 3), of the run's height and width.
        """
        data = self.config.data
        check_images(images, data.height, data.width)
        pixels = preprocessing.normalise(images, data.mean, data.std)
        outputs: Any = self.model.apply(variables, pixels, train=False)
        return unit_length(outputs.main.neck)

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """All devices of this process."""
        return make_mesh(jax.local_devices())

    @functools.cached_property
    def _compiled(self) -> Callable[[Array], Array]:
        split, whole = batch_sharding(self._mesh), replicated(self._mesh)
        fold = jax.jit(functools.partial(folded, dtype=self.config.model.dtype))
        variables = jax.device_put(fold(self.variables), whole)
        function = jax.jit(
            self.apply,
            in_shardings=(whole, split),
            out_shardings=whole,
            compiler_options=compiler_options(self._mesh),
        )
        return functools.partial(function, variables)

    def _batches(
        self,
        given: Iterator[Any],
        size: int,
        on_unreadable: Callable[[PictureError], Any] | None,
    ) -> Iterator[Float[np.ndarray, "_ channels"]]:
        """The embeddings of each batch of ``size`` pictures."""
        read = self._read(given, 2 * size, on_unreadable)
        running: _Batch | None = None
        # One batch is read and dispatched while the devices compute the one before.
        while batch := list(itertools.islice(read, size)):
            following = self._dispatch(batch, size)
            if running is not None:
                yield self._collect(running)
            running = following
        if running is not None:
            yield self._collect(running)

    def _read(
        self,
        pictures: Iterator[Any],
        ahead: int,
        on_unreadable: Callable[[PictureError], Any] | None,
    ) -> Iterator["_Read"]:
        """Names and inputs of the pictures; threads prepare up to ``ahead`` of them."""

        def attempt(index: int, picture: Any) -> _Read | PictureError:
            name = picture if isinstance(picture, str | os.PathLike) else f"picture {index}"
            if isinstance(picture, PictureError):
                return picture
            try:
                return _Read(name, self.preprocess(picture))
            except PictureError as error:
                return error

        waiting: collections.deque[Future] = collections.deque()
        numbered = enumerate(pictures)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while True:
                free = ahead - len(waiting)
                waiting += [pool.submit(attempt, *one) for one in itertools.islice(numbered, free)]
                if not waiting:
                    return
                result = waiting.popleft().result()
                if not isinstance(result, PictureError):
                    yield result
                elif on_unreadable is None:
                    raise result
                else:
                    on_unreadable(result)
                    yield _Read("", None)

    def _dispatch(self, batch: Sequence["_Read"], size: int) -> "_Batch":
        """Start the computation of a batch.

        A batch below ``size`` is padded to a power of two per device, so that few shapes compile.
        """
        images = [one.pixels for one in batch if one.pixels is not None]
        if not images:
            return _Batch(batch, None)
        devices, count = self._mesh.size, len(images)
        per_device = 2 ** math.ceil(math.log2(math.ceil(count / devices)))
        rows = np.zeros((min(size, per_device * devices), *images[0].shape), np.uint8)
        rows[:count] = images
        return _Batch(batch, self._compiled(jax.device_put(rows, batch_sharding(self._mesh))))

    def _collect(self, batch: "_Batch") -> Float[np.ndarray, "_ channels"]:
        """Wait for a batch and check its embeddings; NaN for the unreadable pictures."""
        rows = np.full((len(batch.pictures), self.dim), np.nan, np.float32)
        readable = [row for row, one in enumerate(batch.pictures) if one.pixels is not None]
        if batch.embeddings is not None:
            rows[readable] = np.asarray(batch.embeddings)[: len(readable)]
        lengths = np.linalg.norm(rows[readable], axis=1)
        broken = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))  # NaN too
        if broken.size:
            raise UserError(
                f"{batch.pictures[readable[broken[0]]].name}: its embedding has length "
                f"{lengths[broken[0]]:g}, not 1; the checkpoint's weights or statistics are broken"
            )
        return rows


def check_images(images: Any, height: int, width: int) -> None:
    """Raises ValueError unless images are an array (N, height, width, 3).

    >>> check_images(np.zeros((2, 3, 64, 32)), 64, 32)
    Traceback (most recent call last):
    ...
    ValueError: images have shape (2, 3, 64, 32); expected (N, 64, 32, 3), RGB in [0, 255]
    """
    shape = np.shape(images)
    if len(shape) != 4 or shape[1:] != (height, width, 3):
        raise ValueError(
            f"images have shape {shape}; expected (N, {height}, {width}, 3), RGB in [0, 255]"
        )


class _Read(NamedTuple):
    """A picture's name and its pixels as :meth:`Embedder.apply` takes them; None: unreadable."""

    name: str | os.PathLike
    pixels: np.ndarray | None


class _Batch(NamedTuple):
    """Pictures, and the embeddings of the readable ones, still being computed; padding last."""

    pictures: Sequence[_Read]
    embeddings: Array | None


def _one_by_one(pictures: Any) -> tuple[Iterator[Any], int | None]:
    """The pictures one by one, whatever they were given as, and their number, if it is known.

    They are what threads may share: paths, arrays, or the error of a picture that was read here.

    Raises:
        PictureError: a folder without pictures.
    """
    if isinstance(pictures, str | os.PathLike):
        given: Any = list_pictures(pictures)[0] if os.path.isdir(pictures) else [pictures]
    elif isinstance(pictures, np.ndarray | jax.Array):
        array = np.asarray(pictures)
        # NumPy's strings are no paths to everyone; Python's are.
        given = (array.tolist() if array.ndim == 1 else array) if _is_list(array) else [array]
    # An open file would be read line by line, bytes number by number, and a tensor row by row.
    elif (
        isinstance(pictures, bytes)
        or hasattr(pictures, "read")
        or (hasattr(pictures, "__array__") and not _is_list(pictures))
    ):
        given = [pictures]
    else:
        given = pictures if isinstance(pictures, Iterable) else [pictures]
    if isinstance(given, list | tuple | np.ndarray):
        return map(_settled, given), len(given)
    # What yields pictures may yield one object again and again, with other pixels.
    return map(_own, given), len(given) if isinstance(given, Sized) else None


def _is_list(array: Any) -> bool:
    """Whether an array is a list of pictures (N, H, W, 3) or of paths (N,), by its shape."""
    shape = getattr(array, "shape", ())
    if len(shape) == 1:  # pandas' columns of text have types of their own
        return getattr(array.dtype, "kind", "O") in "OU"
    return len(shape) == 4


def _settled(picture: Any) -> Any:
    """A picture that any thread can read.

    Pillow reads files late, and only one thread may make it do so: pictures may share a file, and
    one picture may be given twice.
    """
    if isinstance(picture, Image.Image):
        try:
            return preprocessing.from_pillow(picture)
        except PictureError as error:
            return error
    if hasattr(picture, "__array__"):
        with contextlib.suppress(*NO_ARRAY):
            array = np.asarray(picture)
            if array.dtype.kind not in "OSU":  # :meth:`Embedder.preprocess` names its type
                return array
    return picture


def _own(picture: Any) -> Any:
    """The picture as it is now: as :func:`_settled`, and its pixels are copied."""
    settled = _settled(picture)
    is_new = isinstance(picture, Image.Image)
    return settled.copy() if isinstance(settled, np.ndarray) and not is_new else settled
