"""Measuring a device's table: every part of every pass, and what the command makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from strucprune_core.commands.main import app
from strucprune_core.errors import InvalidSpec
from strucprune_core.evaluation import device_bench
from strucprune_core.evaluation.device_bench import Setup, measure, widths_up_to
from strucprune_core.plan.device_table import DeviceTable, parse_table
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.latency import pass_model
from strucprune_core.storage.local import LocalStore
from tests.core.commands.calling import call, failed, prune_command
from tests.support.device_tables import made_table
from tests.support.tiny_llama import make_tiny_llama

SETUP = Setup("cpu", "float32", 1, 64, 0.01)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few and as small measurements as show what there is to see."""
    changes: dict[str, Any] = {
        "SEQUENCES": (1, 2),
        "PROMPT_TOKENS": 8,
        "CONTEXTS": (4, 16),
        "GROUPS": (1, 2),
        "_LOGITS": 64,
        "_BUFFER_BYTES": 1 << 20,
        "_LEAST_ROUNDS": 1,
        "_MOST_CALLS": 1,
        "widths_up_to": lambda largest: (16, 64, 256),
    }
    for name, value in changes.items():
        monkeypatch.setattr(device_bench, name, value)


@pytest.mark.usefixtures("small")
def test_a_table_of_this_machine() -> None:
    shares: list[float] = []
    threads = torch.get_num_threads()
    table = measure(SETUP, shares.append)
    assert torch.get_num_threads() == threads
    assert (table.kind, table.dtype, table.threads, table.rounds) == ("cpu", "float32", 1, 1)
    assert [(each.sequences, each.tokens) for each in table.decode] == [(1, 1), (2, 1)]
    assert [(each.sequences, each.tokens) for each in table.prefill] == [(1, 8)]
    for times in (*table.decode, *table.prefill):
        # All but what is larger than the largest hidden size in both places.
        assert [[value is None for value in row] for row in times.products] == [
            [False, False, False],
            [False, False, False],
            [False, False, True],
        ]
        assert None not in times.activation
        assert [value is None for value in times.layer] == [False, False, True]
        assert [value is None for value in times.model] == [False, False, True]
        for by_width in times.attention:
            assert [value is None for row in by_width for value in row] == [False] * 4 + [True] * 2
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert parse_table(table.model_dump_json(), "it") == table


@pytest.mark.usefixtures("small")
def test_the_table_gives_times_of_models(tmp_path: Path) -> None:
    directory = make_tiny_llama(tmp_path / "model", hidden=64, intermediate=192, vocab=512)
    config = inspect_model(LocalStore(directory)).config
    table = measure(SETUP)
    for of, context in (("decode", 10), ("prefill", 0)):
        assert 0 < pass_model(table, of, 1).seconds(config, context) < 60


@pytest.mark.usefixtures("small")
def test_each_measurement_is_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that runs while parts are called alone, so that nothing else can count."""
    now = 0.0

    def slow(bench: object, shape: object, *index: int) -> Callable[[], object]:
        def call() -> None:
            nonlocal now
            now += 1e-3 * (1 + sum(index))

        return call

    for part in ("products", "layer", "activation", "attention", "model"):
        monkeypatch.setattr(device_bench._Bench, f"_{part}", slow)
    monkeypatch.setattr(time, "thread_time", lambda: now)
    monkeypatch.setattr(device_bench, "_MOST_CALLS", 7)
    table = measure(SETUP)
    (prompt,) = table.prefill
    assert prompt.products[0] == (1e-3, 2e-3, 3e-3)
    assert prompt.products[1] == (2e-3, 3e-3, 4e-3)
    assert prompt.activation == (1e-3, 2e-3, 3e-3)
    assert prompt.attention[0][1] == (2e-3, 3e-3)
    assert table.spread == 0.0


def test_medians_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_bench, "widths_up_to", lambda largest: (16,))
    monkeypatch.setattr(device_bench, "_BUFFER_BYTES", 1 << 16)
    bench = device_bench._Bench(Setup("cpu", "float32", 1, 16, 1.0))
    places = len(bench.places())
    rounds = np.array([[1.0] * places, [5.0] * places, [2.0] * places])
    table = device_bench._table(Setup("cpu", "float32", 1, 16, 1.0), bench, rounds)
    assert table.decode[0].products == ((2.0,),)
    assert table.rounds == 3
    assert table.spread == pytest.approx((3.5 - 1.5) / 4)


def test_matrices_lie_at_different_places() -> None:
    bench = device_bench._Bench(Setup("cpu", "float32", 1, 64, 1.0))
    places = {bench._linear(64, 64).weight.data_ptr() for _ in range(9)}
    assert len(places) == 9


def test_widths() -> None:
    assert widths_up_to(1024) == (16, 64, 256, 512, 1024, 2048, 4096)
    assert widths_up_to(1500)[-1] == 8192


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "tpu"}, "--device: 'tpu' is not a device"),
        ({"device": "auto"}, "a table is of one device"),
        ({"dtype": "int8"}, "'int8' is no dtype"),
    ],
)
def test_what_cannot_be_measured(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        measure(Setup(**{**vars(SETUP), **changes}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InvalidSpec, match="no CUDA device"):
        measure(Setup("cuda", "float32", 1, 64, 1.0))


@pytest.mark.usefixtures("small")
def test_the_command_writes_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    options = ["--dtype", "float32", "--threads", "1", "--seconds", "1", "--largest", "512"]
    result = CliRunner().invoke(app, ["bench-device", "--output", str(file), *options])
    assert result.exit_code == 0, result.output
    assert "this takes about 1 s" in result.stderr
    assert result.stdout == ""
    table = parse_table(file.read_text(encoding="utf-8"), "mine.json")
    assert table.threads == 1
    again = CliRunner().invoke(app, ["bench-device", "--output", str(file), *options])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.usefixtures("small")
def test_the_command_prints_a_table() -> None:
    result = CliRunner().invoke(app, ["bench-device", "--threads", "1", "--seconds", "1"])
    assert result.exit_code == 0, result.output
    assert DeviceTable.model_validate(json.loads(result.stdout)).dtype == "bfloat16"


def test_a_job_on_a_measured_device(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=3)
    file = tmp_path / "mine.json"
    file.write_text(made_table().model_dump_json(), encoding="utf-8")
    asked: list[str | Path] = [
        *("--target-speedup", "1.05"),
        *("--target-device", file),
        *("--target-context-tokens", "64"),
    ]
    command = [
        each
        for each in prune_command(model, text_file, tmp_path / "out", *asked)
        if each not in ("--sparsity", "0.3")
    ]
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert "(1.05 asked for)" in " ".join(result.stdout.split())
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert report["predicted_speed"]["asked"] == 1.05
    assert report["predicted_speed"]["table_sha256"] == made_table().sha256()

    estimate = call("estimate", model, *asked)
    assert estimate.exit_code == 0, estimate.output
    assert "predicted speed" in estimate.stdout
    error = failed("estimate", model, "--target-speedup", "90", *asked[2:])
    assert error["field"] == "pruning.target.speedup"
