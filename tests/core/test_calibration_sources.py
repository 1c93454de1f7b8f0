"""Whole jobs calibrated on something else than plain text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from strucprune_core.errors import InvalidText
from tests.core.test_cli import call, prune, result_of
from tests.core.tiny_job import checkpoint_of, run, tiny_spec
from tests.support.text import make_text

DOCUMENTS = make_text(60).split("\n\n")
TALKS = [
    [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": text}]
    for text in DOCUMENTS
]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    lines = [json.dumps({"text": text}) + "\n" for text in DOCUMENTS]
    (directory / "d.jsonl").write_text("".join(lines))
    pq.write_table(pa.table({"text": DOCUMENTS}), directory / "d.parquet", row_group_size=16)
    pq.write_table(pa.table({"messages": TALKS}), directory / "talks.parquet")
    return directory


def test_the_same_documents_give_the_same_checkpoint(
    tmp_path: Path, tiny_model: Path, files: Path
) -> None:
    checkpoints = []
    for name in ("d.jsonl", "d.parquet"):
        spec = tiny_spec(tiny_model, files / name, tmp_path / name, evaluation=None)
        run(spec, tmp_path / f"run-{name}")
        checkpoints.append(checkpoint_of(tmp_path / name))
    assert checkpoints[0] == checkpoints[1]


def test_conversations_from_the_command_line(tmp_path: Path, tiny_model: Path, files: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    more = ("--chat-template", "--calibration-field", "messages")
    report = result_of(*prune(model, files / "talks.parquet", tmp_path / "out", *more))
    assert report["spec"]["calibration"]["chat_template"] is True
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        (["--chat-template"], "invalid_spec", "calibration.chat_template"),
        (["--calibration-field", "body"], "invalid_text", "calibration.field"),
        (["--calibration-format", "jsonl"], "invalid_text", "calibration.uri"),
        (["--calibration-format", "xml"], "invalid_spec", "calibration.format"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tiny_model: Path, files: Path, options: list[str], code: str, field: str
) -> None:
    given = prune(tiny_model, files / "d.parquet", tmp_path / "out", *options, "--json")
    result = call(*given)
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["field"]) == (code, field), error
    assert error["remedy"] or code == "invalid_spec"


def test_a_bad_record_in_the_middle_fails_the_job(
    tmp_path: Path, tiny_model: Path, files: Path
) -> None:
    lines = (files / "d.jsonl").read_text().splitlines()
    lines[30] = lines[30][:-5]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    spec = tiny_spec(tiny_model, tmp_path / "d.jsonl", tmp_path / "out", evaluation=None)
    with pytest.raises(InvalidText, match="line 31") as caught:
        run(spec, tmp_path / "run")
    assert caught.value.field == "calibration.uri"
    assert not (tmp_path / "out").exists()
