"""`verify` of a checkpoint that was published and then came to harm."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.evaluation.standalone import verify_checkpoint
from tests.core.jobs.tiny_job import run, tiny_spec

MANIFEST = "strucprune.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, text_file: Path) -> Path:
    root = tmp_path_factory.mktemp("published")
    run(tiny_spec(tiny_model, text_file, root / "out", evaluation=None), root)
    return root / "out"


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "copy")


def sign(directory: Path) -> None:
    """Make the manifest fit the files, as one who altered both would."""
    body = json.loads((directory / MANIFEST).read_bytes())
    for entry in body["files"]:
        data = (directory / entry["name"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / MANIFEST).write_text(json.dumps(body))


def refused(directory: Path, words: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=words) as caught:
        verify_checkpoint(str(directory))
    assert caught.value.field == "DIR"


def test_what_was_published_is_valid(published: Path) -> None:
    result = verify_checkpoint(str(published))
    assert result["valid"] is True
    assert result["files"] == len(list(published.iterdir())) - 1
    assert result["max_abs_logit_difference"] <= result["tolerance"]


def test_without_a_manifest_it_is_no_finished_job(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    refused(copy, "no strucprune.json")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "report.html"])
def test_a_file_that_is_missing_or_altered_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    refused(copy, f"{name} is not the file that was written")
    (copy / name).unlink()
    refused(copy, f"{name} is missing")


def test_a_missing_tensor_is_found_even_if_the_digests_fit(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    sign(copy)
    refused(copy, r"layers\.2\.mlp\.down_proj\.weight' is missing")


def test_other_widths_are_found_even_if_the_digests_fit(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_bytes())
    config["strucprune"]["layers"][1]["ffn"][0] -= 1
    (copy / "config.json").write_text(json.dumps(config))
    sign(copy)
    refused(copy, r"layers\.1\.mlp\.gate_proj\.weight' has shape")


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"files": 1}',
        '{"files": [1]}',
        '{"files": [{"name": "config.json"}]}',
        '{"files": []}',
        '{"format_version": 2, "files": []}',
    ],
)
def test_a_manifest_that_is_none_is_refused(copy: Path, manifest: Any) -> None:
    (copy / MANIFEST).write_text(manifest)
    refused(copy, "strucprune.json")
