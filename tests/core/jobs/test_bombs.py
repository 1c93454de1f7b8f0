"""Small files that would unpack, nest or run on without end: jobs refuse them in little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

MIB = 2**20
# Of each process of the command: importing torch takes some 400 MiB, reading texts at most 512.
MOST_BYTES = 1100 * MIB
MOST_SECONDS = 120


def refused(*command: str | Path) -> dict[str, Any]:
    """The error of a command that must stay within `MOST_BYTES`, and the peak of its processes."""
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024\n"
        "print(json.dumps([done.returncode, done.stdout, peak]))"
    )
    argv = [sys.executable, "-m", "strucprune_core.commands.main", *map(str, command), "--json"]
    measured = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        check=True,
        timeout=MOST_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A sparse file must stay sparse when it is copied.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (256 * MIB, 256 * MIB)),
    )
    returncode, stdout, peak = json.loads(measured.stdout)
    assert returncode in (1, 2), measured.stderr
    assert "Traceback" not in measured.stderr
    assert peak < MOST_BYTES
    error: dict[str, Any] = json.loads(stdout)["error"]
    assert not error["retryable"]
    assert error["remedy"]
    return error


def sparse(path: Path, size_bytes: int, start: bytes = b"", end: bytes = b"") -> None:
    """A file of zeros that takes no space, but for its two ends."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size_bytes)
        file.seek(size_bytes - len(end))
        file.write(end)


def endless_line(folder: Path) -> Path:
    sparse(folder / "d.jsonl", 2 << 30, b'{"text": "', b'"}\n')
    return folder / "d.jsonl"


def endless_later_line(folder: Path) -> Path:
    sparse(folder / "d.jsonl", 2 << 30, b'{"text": "some words"}\n{"text": "', b'"}\n')
    return folder / "d.jsonl"


def endless_text(folder: Path) -> Path:
    sparse(folder / "d.txt", 2 << 30)
    return folder / "d.txt"


def blank_lines(folder: Path) -> Path:
    (folder / "d.jsonl").write_bytes(b"\n" * (18 * MIB))
    return folder / "d.jsonl"


def deep_line(folder: Path) -> Path:
    (folder / "d.jsonl").write_bytes(b'{"text": ' + b"[" * (15 * MIB) + b"\n")
    return folder / "d.jsonl"


def long_dictionary(folder: Path) -> Path:
    """Some kilobytes that stand for 60 GB."""
    long = pa.array(["word " * (4 * MIB)])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), long)
    pq.write_table(pa.table({"text": rows}), folder / "d.parquet", compression="zstd")
    assert (folder / "d.parquet").stat().st_size < 100_000
    return folder / "d.parquet"


def large_page(folder: Path) -> Path:
    """A page of 400 MiB in some kilobytes."""
    table = pa.table({"text": ["x" * (400 * MIB)]})
    pq.write_table(table, folder / "d.parquet", compression="zstd", use_dictionary=False)
    assert (folder / "d.parquet").stat().st_size < 200_000
    return folder / "d.parquet"


def endless_nulls(folder: Path) -> Path:
    nulls = pa.nulls(1_200_000, pa.string())
    pq.write_table(pa.table({"text": nulls}), folder / "d.parquet", compression="zstd")
    assert (folder / "d.parquet").stat().st_size < 100_000
    return folder / "d.parquet"


TEXTS: list[tuple[Callable[[Path], Path], str]] = [
    (endless_line, "line 1 of d.jsonl is longer than"),
    (endless_later_line, "line 2 of d.jsonl is longer than"),
    (endless_text, "over the limit"),
    (blank_lines, "blank lines"),
    (deep_line, "nested deeper"),
    (long_dictionary, "row 1 of d.parquet is longer than"),
    (large_page, ""),
    (endless_nulls, "hold no text"),
]


@pytest.mark.parametrize(("make", "words"), TEXTS, ids=lambda value: getattr(value, "__name__", ""))
def test_texts(tiny_model: Path, tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    error = refused(
        *("prune", tiny_model, "--output", tmp_path / "out", "--sparsity", "0.3"),
        *("--calibration", make(tmp_path), "--samples", "8", "--sequence-length", "32"),
    )
    assert (error["code"], error["field"]) == ("invalid_text", "calibration.uri")
    assert words in error["message"]
    assert not (tmp_path / "out").exists()


def million_shards(model: Path) -> None:
    (model / "model.safetensors").unlink()
    names = {f"t{i}": f"m{i}.safetensors" for i in range(1_000_000)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def many_shards(model: Path) -> None:
    (model / "model.safetensors").unlink()
    names = {f"t{i}": f"m{i}.safetensors" for i in range(400_000)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def deep_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_bytes(b'{"weight_map":' + b"[" * (15 * MIB))


def deep_config(model: Path) -> None:
    (model / "config.json").write_bytes(b'{"a":' * 200_000)


def large_tokenizer(model: Path) -> None:
    sparse(model / "tokenizer.json", 1 << 30, b"{")


def deep_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_bytes(b'{"model":' * (4 * MIB))


def deep_header(model: Path) -> None:
    header = b'{"a":' * (3 * MIB)
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    "spoil",
    [
        million_shards,
        many_shards,
        deep_index,
        deep_config,
        large_tokenizer,
        deep_tokenizer,
        deep_header,
    ],
)
def test_models(
    tiny_model: Path, text_file: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    spoil(model)
    error = refused(
        *("prune", model, "--output", tmp_path / "out", "--sparsity", "0.3"),
        *("--calibration", text_file, "--samples", "8", "--sequence-length", "32"),
    )
    assert (error["code"], error["field"]) == ("invalid_checkpoint", "model.uri")
    assert not (tmp_path / "out").exists()
