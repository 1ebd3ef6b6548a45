import json

import pytest

from pgfl_jax.errors import UserError
from pgfl_jax.report.writers import (
    MetricWriter,
    duration,
    progress_line,
    score_table,
    write_json,
)


@pytest.mark.parametrize(("restored", "kept"), [(None, []), (0, [0]), (20, [0, 10, 20])])
def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(tmp_path, restored, kept):
    lines = "".join(json.dumps({"step": step, "a": 0.5}) + "\n" for step in (0, 10, 20, 30))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 40, "a"')  # killed in mid-line
    writer = MetricWriter(tmp_path, restored)
    writer.write(99, {"a": 1.0})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [*kept, 99]


@pytest.mark.parametrize("line", [b"note", b'{"a": 1}', b"[1]", b'{"step": "1"}', b"\xff", b""])
def test_a_foreign_line_of_the_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 10, "a": 0.5}\n' + line + b'\n{"step": 20, "a": 0.5}\n'
    path.write_bytes(before)
    with pytest.raises(UserError) as error:
        MetricWriter(tmp_path, 20)
    assert str(error.value) == (
        f"{path}, line 2: not the metrics of a step; remove that line, or move the file away"
    )
    assert path.read_bytes() == before


def test_the_progress_line_by_hand():
    terms = {
        "alignment": 1.9, "gradient_norm": 7.0, "id_foreground": 4.41, "id_main": 4.567,
        "id_parts": 4.38, "kd_feature_foreground": 0.2, "kd_feature_parts": 0.1, "total": 13.0,
    }  # fmt: skip
    assert progress_line(50, 1200, terms, "161 images/s | ETA 1:05") == (
        "step   50/1200 | total 13 id 4.57/4.41/4.38 kd_feature 0.2/0.1 alignment 1.9"
        " | 161 images/s | ETA 1:05"
    )


def test_durations():
    assert [duration(s) for s in (0.4, 65.0, 3725.0)] == ["0:00", "1:05", "1:02:05"]


def test_the_score_table_is_in_percent():
    result = {
        "protocol": "occluded", "embedding": "main", "parameters": "trained", "rerank": False,
        "mAP": 0.2674, "mINP": 0.1, "cmc": {"1": 0.3, "5": 0.5}, "ci95": {"mAP": [0.24, 0.29]},
        "num_valid_queries": 400,
    }  # fmt: skip
    row = score_table([result]).splitlines()[1].split()
    assert row == ["occluded", "main", "26.7", "(24.0–29.0)", "30.0", "50.0", "10.0", "400"]
    other = score_table([result | {"flip": True, "distance": "euclidean"}]).splitlines()[1].split()
    assert other == [row[0], "main", "flip", "euclidean", *row[2:]]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}
