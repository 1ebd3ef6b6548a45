"""The result of each query, as a Parquet file beside the scores.

``results/<protocol>.queries.parquet`` has one row per query that was ranked, in the split's order:

| column | type | |
|---|---|---|
| ``query`` | int32 | row among the queries that were ranked |
| ``filename`` | string | |
| ``identity``, ``camera`` | int64 | |
| ``occlusion`` | float32 | hidden share of the person in [0, 1]; null where unknown |
| ``num_matches`` | int32 | gallery items of the identity under other cameras |
| ``num_junk`` | int32 | gallery items of the identity under the query's camera |
| ``average_precision`` | float64 | in [0, 1]; null without a match (a skipped query) |
| ``first_match_rank`` | int32 | from 1, junk not counted; null without a match |
| ``top_index`` | list of int32 | rows of the nearest gallery items, the nearest first, with junk |
| ``top_filename`` | list of string | their files |
| ``top_identity``, ``top_camera`` | list of int64 | |
| ``top_distance`` | list of float | ascending; ties by gallery row |
| ``top_relation`` | list of string | ``match``, ``junk`` or ``impostor`` (another identity) |

All lists of a file have the same length: :data:`TOP`, or the gallery's size if it is smaller. The
file's metadata has, under ``pgfl_jax``, the JSON object :attr:`QueryResults.facts`: the scores'
``dataset``, ``protocol``, ``step``, ``embedding``, ``parameters``, ``distance``, ``rerank`` and
``fingerprint``. Teachers are ranked on images with a pose alone, and rows count these.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
from jaxtyping import Shaped
from pyarrow import parquet

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.blocks import Ranking
from pgfl_jax.retrieval.protocols import Images
from pgfl_jax.retrieval.query_results import QueryResults

METADATA = b"pgfl_jax"


def encode_queries(results: QueryResults) -> bytes:
    """The content of the Parquet file of some results."""
    query = results.query
    columns = {
        "query": np.arange(len(query), dtype=np.int32),
        "filename": query.filenames.astype(object),
        "identity": query.identities,
        "camera": query.cameras,
        "occlusion": query.occlusion.astype(np.float32),
        "num_matches": results.num_matches.astype(np.int32),
        "num_junk": results.num_junk.astype(np.int32),
        "average_precision": results.average_precision,
        "first_match_rank": results.first_match_rank,
    }
    lists = {
        "top_index": results.nearest.indices.astype(np.int32),
        "top_filename": results.filenames.astype(object),
        "top_identity": results.identities,
        "top_camera": results.cameras,
        "top_distance": results.nearest.distances,
        "top_relation": results.relations,
    }
    arrays = {name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()}
    arrays["first_match_rank"] = arrays["first_match_rank"].cast(pyarrow.int32())
    arrays |= {name: _lists(values) for name, values in lists.items()}
    table = pyarrow.table(arrays).replace_schema_metadata({METADATA: json.dumps(results.facts)})
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_queries(path: Path) -> QueryResults:
    """Read a file that an evaluation wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged, or another one.
    """
    content = path.read_bytes()
    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        return _from_table(table)
    except (LookupError, TypeError, ValueError, OSError) as error:  # pyarrow's derive from these
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: damaged, or not the queries of an evaluation ({reason}); evaluate again "
            "(pgfl evaluate)"
        ) from error


def _from_table(table: pyarrow.Table) -> QueryResults:
    column = {name: table[name].combine_chunks() for name in table.column_names}
    known = {
        name: column[name].to_numpy(zero_copy_only=False)
        for name in column
        if not name.startswith("top_")
    }
    top = {name: _rows(column[name]) for name in column if name.startswith("top_")}
    return QueryResults(
        facts=json.loads(table.schema.metadata[METADATA]),
        query=Images(
            *(known[name] for name in ("filename", "identity", "camera", "occlusion")),
        ),
        num_matches=known["num_matches"],
        num_junk=known["num_junk"],
        average_precision=known["average_precision"].astype(np.float64),
        first_match_rank=known["first_match_rank"].astype(np.float64),
        nearest=Ranking(top["top_index"], top["top_distance"]),
        filenames=top["top_filename"],
        identities=top["top_identity"],
        cameras=top["top_camera"],
        relations=top["top_relation"],
    )


def _lists(values: Shaped[np.ndarray, "queries top"]) -> pyarrow.Array:
    """The rows of a table as lists."""
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(values.ravel()))


def _rows(lists: pyarrow.Array) -> Shaped[np.ndarray, "queries top"]:
    """The inverse of :func:`_lists`."""
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
