"""A trained run as an object, tested on the run in tests/golden/run_0cfe576."""

import collections.abc
import copy
import dataclasses
import inspect
import io
import pickle
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

import pgfl_jax
from input_pipeline.from_config import evaluation_split, open_builder, open_catalog
from pgfl_jax.checkpoint import CheckpointError, open_checkpoints
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.preprocessing import PictureError
from pgfl_jax.report.writers import write_json
from pgfl_jax.retrieval.embeddings import embed_split, make_embed
from tests.runs import GOLDEN_OPTIONS, GOLDEN_RUN


@pytest.fixture(scope="module")
def embedder():
    return pgfl_jax.load(GOLDEN_RUN)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(64, 32), (40, 20), (301, 157), (90, 30), (64, 32), (70, 70), (33, 64)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def rows(embedder, pictures):
    return embedder(pictures)


def test_it_gives_the_pipelines_embeddings(embedder, tiny_config, tmp_path):
    config = tiny_config(**GOLDEN_OPTIONS)
    mesh = make_mesh(jax.devices()[:1])
    experiment = Experiment.create(config, num_identities=16, num_images=128)
    target = experiment.abstract_state(), experiment.state_shardings(mesh)
    with open_checkpoints(GOLDEN_RUN, read_only=True) as checkpoints:
        state = checkpoints.restore(*target, 30)
    catalog = open_catalog(open_builder(config, config.data.dataset), "gallery")
    embed = make_embed(experiment, mesh, ("main",))
    expected = embed_split(embed, state, evaluation_split(catalog, config), mesh).rows["main"]
    for index, image in enumerate(catalog.images):
        (tmp_path / f"{index:04d}.jpg").write_bytes(image)
    found = embedder(tmp_path)
    assert found.shape == expected.shape == (len(catalog), 192) and found.dtype == np.float32
    assert np.sum(found * expected, axis=1).min() >= 0.9999


def test_rows_have_unit_length_and_do_not_depend_on_the_batch(embedder, pictures, rows):
    assert embedder.dim == rows.shape[1]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for size in (1, 3, 100):  # rounded up to the eight devices
        np.testing.assert_allclose(embedder(pictures * 3, batch_size=size)[7:14], rows, atol=2e-6)


def test_paths_folders_and_arrays_are_the_same_pictures(embedder, pictures, rows, tmp_path):
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.iterdir())
    np.testing.assert_allclose(embedder(tmp_path), rows, atol=2e-6)
    np.testing.assert_allclose(embedder([*map(str, paths)]), rows, atol=2e-6)
    np.testing.assert_allclose(embedder(paths[2]), rows[2:3], atol=2e-6)
    np.testing.assert_allclose(embedder(pictures[1]), rows[1:2], atol=2e-6)
    stack = np.stack([pictures[0], pictures[4]])
    np.testing.assert_allclose(embedder(stack), rows[[0, 4]], atol=2e-6)


def test_the_pure_function_is_the_networks_main_branch(embedder, pictures, rows):
    images = np.stack([embedder.preprocess(picture) for picture in pictures])
    found = jax.jit(embedder.apply)(embedder.variables, images)
    np.testing.assert_allclose(found, rows, atol=2e-6)
    mean, std = np.array(embedder.config.data.mean), np.array(embedder.config.data.std)
    pixels = jnp.asarray((images / 255 - mean) / std, jnp.float32)
    neck = embedder.model.apply(embedder.variables, pixels, train=False).main.neck
    np.testing.assert_allclose(found, neck / np.linalg.norm(neck, axis=1)[:, None], atol=2e-6)


def test_no_teacher_classifier_or_optimizer_is_loaded(embedder):
    assert {*embedder.variables["params"]} == {"trunk", "main_neck"}
    assert {*embedder.variables["batch_stats"]} == {"trunk", "main_neck"}


def test_bfloat16_gives_nearly_the_same(pictures, rows):
    found = pgfl_jax.load(GOLDEN_RUN, dtype="bfloat16")(pictures)
    cosines = np.sum(found * rows, axis=1)
    assert found.dtype == np.float32 and cosines.min() > 0.99 and cosines.max() < 1 - 1e-7


def test_unreadable_pictures_are_named_and_cost_no_others(embedder, pictures, rows, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 and no more")
    mixed = [pictures[0], broken, pictures[1], tmp_path / "absent.jpg"]
    with pytest.raises(PictureError, match=r"broken\.jpg: damaged, or not a picture"):
        embedder(mixed)
    errors = []
    found = embedder(mixed, on_unreadable=errors.append)
    np.testing.assert_allclose(found[[0, 2]], rows[:2], atol=2e-6)
    assert np.isnan(found[[1, 3]]).all()
    assert [Path(str(error).partition(":")[0]).name for error in errors] == [
        "broken.jpg",
        "absent.jpg",
    ]


def test_broken_weights_are_not_embedded_with(embedder, pictures):
    flat = jax.tree.map(np.zeros_like, embedder.variables)
    broken = dataclasses.replace(embedder, variables=flat)
    with pytest.raises(UserError, match=r"picture 0: its embedding has length 0, not 1"):
        broken(pictures)


@pytest.fixture(scope="module")
def scored_run(tmp_path_factory, tiny_config):
    """Checkpoints of steps 1, 2, 3 with scores 0.2, 0.5, 0.1, and an average of the parameters."""
    workdir = tmp_path_factory.mktemp("scored")
    config = tiny_config(**{"optim.ema_decay": 0.9, "model.pooling": "gem"})
    experiment = Experiment.create(config, num_identities=16, num_images=128)
    state = experiment.init_state(make_mesh(jax.devices()[:1]))
    write_json(workdir / "config.json", config.flat_options())
    with open_checkpoints(workdir) as checkpoints:
        for step, score in ((1, 0.2), (2, 0.5), (3, 0.1)):
            params = jax.tree.map(lambda value, step=step: value + step, state.params)
            average = dataclasses.replace(
                state.average,
                params=jax.tree.map(lambda value, step=step: value - step, state.params),
            )
            checkpoints.save(
                dataclasses.replace(state, step=jnp.asarray(step), params=params, average=average),
                score,
            )
    return workdir, float(state.params["main_pooling"]["power"])


@pytest.mark.parametrize(
    ("options", "step", "difference"),
    [
        ({}, 3, 3),
        ({"checkpoint": "best"}, 2, 2),
        ({"checkpoint": 3}, 3, 3),
        ({"checkpoint": "best", "parameters": "average"}, 2, -2),
    ],
)
def test_the_wanted_checkpoint_and_parameters_are_loaded(scored_run, options, step, difference):
    workdir, power = scored_run
    embedder = pgfl_jax.load(workdir, **options)
    assert embedder.step == step
    assert float(embedder.variables["params"]["main_pooling"]["power"]) == power + difference


def test_a_listing_does_not_print_the_weights(embedder):
    assert repr(embedder) == "Embedder(resnet8, 64x32 pixels to 192 numbers, float32, step 30)"


def test_what_is_no_picture_is_refused_with_its_own_shape(embedder, pictures):
    grey = pictures[0][..., 0]
    for wrong, shape in ((grey, "(64, 32)"), (grey[0], "(32,)"), (np.uint8(7), "()")):
        with pytest.raises(PictureError) as error:
            embedder(wrong)
        assert f"an array of shape {shape} and type" in str(error.value)
    assert embedder([]).shape == (0, 192)


def test_what_is_neither_a_path_nor_pixels_is_refused_with_its_type(embedder, tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    with path.open("rb") as opened:
        for wrong, kind in (
            (np.array([["a.png", "b.png"]]), "an array of type <U5"),
            (None, "NoneType"),
            (b"jpeg", "bytes"),
            (io.BytesIO(b"jpeg"), "BytesIO"),
            (opened, "BufferedReader"),
            ([b"jpeg"], "bytes"),
        ):
            with pytest.raises(PictureError) as error:
                embedder(wrong)
            assert str(error.value) == (
                f"{kind} is no picture; give a path, an RGB array, a PIL picture, or a list of "
                "these"
            )
    with pytest.raises(PictureError) as error:
        embedder([tmp_path])
    assert str(error.value) == f"{tmp_path}: is a folder; give it alone, or give its pictures"


def test_jax_arrays_pillow_images_and_generators_are_pictures_too(embedder, pictures, rows):
    for given in (jnp.asarray(pictures[0]), Image.fromarray(pictures[0])):
        np.testing.assert_allclose(embedder(given), rows[:1], atol=2e-6)
    np.testing.assert_allclose(embedder(picture for picture in pictures), rows, atol=2e-6)


def test_an_iterator_may_yield_one_object_again_and_again(embedder, rows, pictures):
    same_size = [pictures[0], pictures[4]]

    def filling(buffer):
        for picture in same_size * 9:  # more than a batch
            buffer[:] = picture
            yield buffer

    class Lazy(collections.abc.Sequence):
        buffer = np.zeros_like(same_size[0])

        def __len__(self):
            return 2

        def __getitem__(self, index):
            self.buffer[:] = same_size[index]
            return self.buffer

    def turning(image):
        for picture in same_size:
            image.paste(Image.fromarray(picture))
            yield image

    found = embedder(filling(np.zeros_like(same_size[0])), batch_size=8)
    np.testing.assert_allclose(found, np.tile(rows[[0, 4]], (9, 1)), atol=2e-6)
    np.testing.assert_allclose(embedder(Lazy()), rows[[0, 4]], atol=2e-6)
    found = embedder(turning(Image.fromarray(same_size[0]).copy()))
    np.testing.assert_allclose(found, rows[[0, 4]], atol=2e-6)


class Watched(io.BytesIO):
    """A file in memory that knows which threads have read it."""

    def __init__(self, content):
        super().__init__(content)
        self.readers = set()

    def read(self, *size):
        self.readers.add(threading.get_ident())
        return super().read(*size)


@pytest.mark.parametrize("listed", [list, iter])
def test_only_the_callers_thread_reads_the_files_of_pillow_pictures(
    listed, embedder, pictures, rows
):
    buffers = [io.BytesIO() for _ in range(5)]
    for buffer, picture in zip(buffers, pictures, strict=False):
        Image.fromarray(picture).save(buffer, "PNG")
    files = [Watched(buffer.getvalue()) for buffer in buffers]
    unread = [Image.open(file) for file in files]
    given = [unread[0], *unread, unread[0]]
    np.testing.assert_allclose(embedder(listed(given)), rows[[0, *range(5), 0]], atol=2e-6)
    assert [file.readers for file in files] == [{threading.get_ident()}] * 5


@pytest.mark.parametrize("listed", [list, iter])
def test_a_damaged_pillow_picture_is_not_half_of_one(listed, embedder, pictures, rows):
    buffer = io.BytesIO()
    Image.fromarray(pictures[2]).save(buffer, "PNG")
    damaged = bytearray(buffer.getvalue())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 40] = bytes(40)
    given = [Image.open(io.BytesIO(damaged)), Image.fromarray(pictures[0])]
    errors = []
    found = embedder(listed(given), on_unreadable=errors.append)
    assert np.isnan(found[0]).all() and len(errors) == 1
    assert "PIL picture of mode RGB: cannot be read" in str(errors[0])
    np.testing.assert_allclose(found[1], rows[0], atol=2e-6)


class Tensor:
    """What libraries of tensors have in common."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return map(Tensor, self.values)


def test_one_tensor_is_one_picture_and_four_axes_are_a_list(embedder, pictures, rows):
    np.testing.assert_allclose(embedder(Tensor(pictures[0])), rows[:1], atol=2e-6)
    both = np.stack([pictures[0], pictures[4]])
    np.testing.assert_allclose(embedder(Tensor(both)), rows[[0, 4]], atol=2e-6)
    np.testing.assert_allclose(embedder([Tensor(pictures[0])]), rows[:1], atol=2e-6)
    with pytest.raises(PictureError, match=r"^an array of shape \(3, 64, 32\) and type uint8 is "):
        embedder(Tensor(pictures[0].transpose(2, 0, 1)))


def test_the_pages_of_a_file_are_different_pictures(embedder, pictures, rows, tmp_path):
    first, second = (Image.fromarray(pictures[index]) for index in (0, 4))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    with Image.open(tmp_path / "pages.tif") as pages:
        np.testing.assert_allclose(embedder(ImageSequence.Iterator(pages)), rows[[0, 4]], atol=2e-6)


def test_arrays_of_paths_are_paths_and_labels_are_no_pictures(embedder, pictures, rows, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, picture in zip(paths, pictures, strict=False):
        Image.fromarray(picture).save(path)
    for array in (np.array([*map(str, paths)]), np.array(paths, object)):
        np.testing.assert_allclose(embedder(array), rows[:2], atol=2e-6)
    for pair in ((str(paths[0]), 1), (paths[0], 1), (pictures[0], 1)):
        with pytest.raises(PictureError, match=r"^tuple is no picture; give a path, an RGB array"):
            embedder([pair])


def test_the_last_pictures_may_be_unreadable(embedder, pictures, rows, tmp_path):
    errors = []
    given = (one for one in [pictures[0], *[tmp_path / "absent.jpg"] * 9])
    found = embedder(given, batch_size=8, on_unreadable=errors.append)
    np.testing.assert_allclose(found[0], rows[0], atol=2e-6)
    assert found.shape == (10, embedder.dim) and np.isnan(found[1:]).all() and len(errors) == 9
    assert embedder(iter([])).shape == embedder([]).shape == (0, embedder.dim)


def test_what_cannot_be_loaded_is_said_in_one_line(scored_run, tmp_path):
    with pytest.raises(UserError, match=r"parameters = 'ema': must be one of 'trained', 'average'"):
        pgfl_jax.load(GOLDEN_RUN, parameters="ema")
    with pytest.raises(UserError, match=r"dtype = 'int8': must be one of None, 'float32', 'bfloa"):
        pgfl_jax.load(GOLDEN_RUN, dtype="int8")
    assert pgfl_jax.load(GOLDEN_RUN, checkpoint="30").step == 30
    with pytest.raises(UserError, match=r"config\.json: not found; is .* the folder of a"):
        pgfl_jax.load(tmp_path)
    for wrong in (None, b"runs/demo", 3, ""):
        with pytest.raises(UserError) as error:
            inspect.unwrap(pgfl_jax.load)(wrong)  # tests check the types of arguments
        assert str(error.value) == f"path = {wrong!r}: must be the folder of a training run"
    with pytest.raises(CheckpointError, match=r"no checkpoint 7; there are \[30\]"):
        pgfl_jax.load(GOLDEN_RUN, checkpoint=7)
    with pytest.raises(CheckpointError, match=r"no checkpoint has been scored yet"):
        pgfl_jax.load(GOLDEN_RUN, checkpoint="best")
    with pytest.raises(CheckpointError, match=r"no average of the parameters: .*ema_decay is 0"):
        pgfl_jax.load(GOLDEN_RUN, parameters="average")
    workdir, _ = scored_run
    options = pgfl_jax.load(workdir).config.flat_options() | {"model.backbone": "resnet18"}
    write_json(tmp_path / "config.json", options)
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    with pytest.raises(CheckpointError, match=r"another architecture \(batch_stats/"):
        pgfl_jax.load(tmp_path)


def test_damaged_and_broken_weights_are_refused(tmp_path, tiny_config):
    config = tiny_config()
    experiment = Experiment.create(config, num_identities=16, num_images=128)
    state = experiment.init_state(make_mesh(jax.devices()[:1]))
    params = dict(state.params)
    params["main_neck"] = {"scale": state.params["main_neck"]["scale"].at[3].set(jnp.nan)}
    write_json(tmp_path / "config.json", config.flat_options())
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=jnp.asarray(1), params=params), None)
    with pytest.raises(CheckpointError, match=r"params/main_neck/scale has values that are not fi"):
        pgfl_jax.load(tmp_path)
    largest = max((tmp_path / "checkpoints" / "1").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"1: damaged \(.* is not as it was written\)"):
        pgfl_jax.load(tmp_path)


def test_a_run_is_remembered_by_its_whole_path(monkeypatch, tmp_path):
    monkeypatch.chdir(GOLDEN_RUN.parent)
    embedder = pgfl_jax.load(GOLDEN_RUN.name)
    monkeypatch.chdir(tmp_path)
    assert embedder.run == GOLDEN_RUN


@pytest.mark.parametrize(
    "shape", [(64, 32, 3), (2, 3, 64, 32), (2, 64, 32, 1), (2, 128, 64, 3), (2, 32, 64, 3)]
)
def test_a_batch_of_another_layout_is_one_value_error(shape, embedder):
    apply = inspect.unwrap(type(embedder).apply)  # as users call it, without the tests' type checks
    with pytest.raises(ValueError) as error:
        apply(embedder, embedder.variables, np.zeros(shape, np.uint8))
    message = f"images have shape {shape}; expected (N, 64, 32, 3), RGB in [0, 255]"
    assert str(error.value) == message


def test_an_embedder_that_has_been_used_is_pickled(embedder, pictures, rows):
    embedder(pictures[0])
    copies = pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)
    for again in copies:
        assert repr(again) == repr(embedder) and again.run == embedder.run
        np.testing.assert_allclose(again(pictures), rows, atol=2e-6)


@pytest.mark.parametrize("wrong", ["8", 2.5, 0])
def test_a_batch_size_is_a_whole_number(wrong, embedder):
    size = inspect.unwrap(type(embedder).batch_size)
    with pytest.raises(UserError) as error:
        size(embedder, wrong)
    assert str(error.value) == f"batch_size = {wrong!r}: must be a whole number above 0"


def test_an_empty_path_is_not_the_current_folder(embedder, tmp_path, monkeypatch):
    Image.new("RGB", (3, 4)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for empty in ("", [""]):
        with pytest.raises(PictureError, match=r"^'': an empty path"):
            embedder(empty)
