"""The README.md of an artifact: a short model card."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgfl_jax.export import deepstream
from pgfl_jax.export.usage import USAGES, lines

Record = Mapping[str, Any]


def model_card(record: Record, preprocessing: Record) -> str:
    """The text.

    Args:
        record: the content of ``parity.json``.
        preprocessing: the content of ``preprocessing.json``.
    """
    sections = [
        ["# Person embeddings: the main branch of PGFL-KD", "", *_what(record, preprocessing)],
        ["## How to call it", "", *_usage(record, preprocessing)],
        ["## Scores", "", *_scores(record)],
        ["## How exact it is", "", *_parity(record)],
        ["## Without pose", "", *_sizes(record)],
        ["## Data and limits", "", *_limits(record)],
    ]
    if record["format"] == "onnx":
        sections.insert(2, ["## TensorRT and DeepStream", "", *_nvidia(preprocessing)])
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _what(record: Record, preprocessing: Record) -> Iterator[str]:
    size, made_from = preprocessing["size"], record["checkpoint"]
    wanted, result = preprocessing["input"], preprocessing["output"]
    run = f" of the run `{made_from['run']}`" if made_from["run"] else ""
    yield f"Checkpoint {made_from['step']} ({made_from['parameters']} parameters){run}."
    yield "A picture of one person becomes a row of numbers; the dot product of two rows is their"
    yield "cosine. Pictures alone are needed, no poses."
    yield ""
    yield f"- Input `{wanted['name']}`: {wanted['dtype']} {_shape(wanted['shape'])}, RGB, "
    yield f"  contract `{preprocessing['contract']}`."
    yield f"- Resize the whole picture to {size['height']} rows and {size['width']} columns, "
    yield f"  {preprocessing['interpolation']}. Do not crop or pad it."
    inside = "in the graph" if wanted["normalised_inside"] else "by the caller"
    yield f"- Normalised {inside}: {preprocessing['normalise']},"
    yield f"  mean {preprocessing['mean']}, std {preprocessing['std']}."
    yield f"- Output `{result['name']}`: float32 {_shape(result['shape'])}, rows of length 1."
    training = record["training"]
    if training:
        yield ""
        yield f"Trained on {training['dataset']}: {training['images']:,} images of"
        yield f"{training['identities']:,} people, poses: {training['poses']}."


def _shape(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))})"


def _usage(record: Record, preprocessing: Record) -> Iterator[str]:
    models = [model for model in record["models"] if model["precision"] == "float32"]
    for runtime in dict.fromkeys(name for model in models for name in model["runtimes"]):
        # The last file is the one that needs no other beside it.
        file = [model["file"] for model in models if runtime in model["runtimes"]][-1]
        yield f"{USAGES[runtime].title} (`pip install {USAGES[runtime].install}`):"
        yield ""
        yield "```python"
        yield lines(runtime, file, preprocessing).rstrip()
        yield "```"
        yield ""
    yield "Check this folder with `pgfl verify .`"


def _nvidia(preprocessing: Record) -> Iterator[str]:
    yield "```"
    yield deepstream.trtexec(preprocessing["input"]["shape"][1:])
    yield "```"
    yield ""
    if preprocessing["contract"] != "float255_nchw":
        yield "DeepStream's tracker gives floats with channels first: export again with"
        yield "`--contract float255_nchw`, which also writes its configuration."
        return
    size, dim = preprocessing["size"], preprocessing["output"]["shape"][1]
    yield "`deepstream_tracker.yml`, to be merged into a tracker's configuration:"
    yield ""
    yield "```yaml"
    yield deepstream.tracker(size["height"], size["width"], dim).rstrip()
    yield "```"


def _scores(record: Record) -> Iterator[str]:
    if not record["scores"]:
        yield "None are known of this checkpoint."
        return
    yield "Cosine distance, no re-ranking; in percent, with 95 % intervals over the queries."
    yield ""
    yield "| data | protocol | queries | mAP | Rank-1 |"
    yield "|---|---|---:|---:|---:|"
    for result in record["scores"]:
        cells = [
            f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})"
            for value, (low, high) in (
                (result["mAP"], result["ci95"]["mAP"]),
                (result["cmc"]["1"], result["ci95"]["rank1"]),
            )
        ]
        known = result["dataset"], result["protocol"], str(result["num_valid_queries"])
        yield f"| {' | '.join([*known, *cells])} |"


def _parity(record: Record) -> Iterator[str]:
    yield "Each file was run in a fresh process that held its runtime alone, in batches of 1, 7"
    yield "and 32, and compared with JAX on the CPU. `parity.json` has everything."
    yield ""
    yield "| file | runtime | pictures | worst cosine | largest difference |"
    yield "|---|---|---|---:|---:|"
    for check in record["checks"]:
        batches = check["batches"].values()
        worst = min(measured["worst_cosine"] for measured in batches)
        largest = max(measured["largest"] for measured in batches)
        version = next(reversed(check["versions"].values()))
        yield (
            f"| {check['model']} | {check['runtime']} {version} | {check['count']} "
            f"({check['pictures']}) | {worst:.7f} | {largest:.1e} |"
        )
    if record["retrieval"]:
        yield ""
        yield "A model in less precision that loses more than a point of mAP says so in its name."
        yield ""
        yield "| file | protocol | mAP of JAX | mAP | Rank-1 of JAX | Rank-1 |"
        yield "|---|---|---:|---:|---:|---:|"
    for row in record["retrieval"]:
        before, after = row["before"], row["after"]
        numbers = before["mAP"], after["mAP"], before["rank1"], after["rank1"]
        cells = " | ".join(f"{100 * number:.2f}" for number in numbers)
        yield f"| {row['model']} | {row['dataset']} {row['protocol']} | {cells} |"


def _sizes(record: Record) -> Iterator[str]:
    yield "| | inputs | weights | other numbers | multiply-adds a picture | bytes |"
    yield "|---|---|---:|---:|---:|---:|"
    rows = [("the trained network", record["training_graph"], None)]
    rows += [("its main branch", record["main_branch"], None)]
    rows += [(model["file"], model.get("graph"), model["bytes"]) for model in record["models"]]
    for name, graph, size in rows:
        if graph:
            counts = graph["kernels"], graph["others"], graph["multiply_adds"]
            numbers = " | ".join(f"{count:,}" for count in counts)
            inputs = ", ".join(graph["inputs"])
            yield f"| {name} | {inputs} | {numbers} | {f'{size:,}' if size else ''} |"


def _limits(record: Record) -> Iterator[str]:
    training = record["training"]
    if training and training["dataset"].startswith("synthetic"):
        yield "The training images were rendered by PGFL-JAX (Apache-2.0): no real people."
    else:
        yield "The terms of the training images bind the weights too; see their authors' licence."
        yield "Most sets of real people are for research alone."
    yield ""
    yield "Scores fall on other cameras, seasons and populations than those trained on. Embeddings"
    yield "of people are personal data in many countries. A threshold on the cosine must be chosen"
    yield "on your own data."
