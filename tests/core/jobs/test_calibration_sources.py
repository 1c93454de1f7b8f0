"""Whole jobs calibrated on something else than plain text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from strucprune_core.errors import InvalidText
from strucprune_core.spec import JobSpec, OutputSpec
from strucprune_core.storage.local import LocalStore
from tests.core.commands.calling import call, prune_command, result_of
from tests.core.jobs.tiny_job import checkpoint_of, run, tiny_spec
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
    report = result_of(*prune_command(model, files / "talks.parquet", tmp_path / "out", *more))
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
    given = prune_command(tiny_model, files / "d.parquet", tmp_path / "out", *options, "--json")
    result = call(*given)
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["field"]) == (code, field), error
    assert error["remedy"] or code == "invalid_spec"


def test_a_model_calibrated_on_itself(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    more = ("--evaluation", text_file, "--evaluation-sequences", "2")
    length = ("--evaluation-sequence-length", "32")
    reports = [
        result_of(*prune_command(tiny_model, Path("self"), tmp_path / name, *more, *length, *seed))
        for name, seed in (("a", ()), ("b", ()), ("c", ("--seed", "1")))
    ]
    assert reports[0]["spec"]["calibration"]["source"] == "self"
    assert reports[0]["perplexity"]["ratio"] < 10
    made = [checkpoint_of(tmp_path / name) for name in ("a", "b", "c")]
    assert made[0] == made[1]
    assert made[0] != made[2]


class Remote(LocalStore):
    """A store whose files lie elsewhere."""

    def local_path(self, key: str) -> Path | None:
        return None


def test_a_remote_model_is_fetched_once(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    read: list[str] = []

    class Counting(Remote):
        def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
            read.append(key)
            return super().read(key, start, length)

    spec = tiny_spec(tiny_model, text_file, tmp_path / "near", evaluation=None)
    body = spec.model_dump()
    body["calibration"] = {"source": "self", "samples": 8, "sequence_length": 32}
    spec = JobSpec.model_validate(body)
    run(spec, tmp_path / "run-near")
    far = spec.model_copy(update={"output": OutputSpec(uri_prefix=str(tmp_path / "far"))})
    run(far, tmp_path / "run-far", open_store=lambda uri: Counting(Path(uri)))
    assert checkpoint_of(tmp_path / "near") == checkpoint_of(tmp_path / "far")
    # Were every step to read the model anew, each of its 38 tensors would be read 31 times.
    assert read.count("model.safetensors") < 1000
    assert not list((tmp_path / "run-far" / "scratch").glob("tmp*"))


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
