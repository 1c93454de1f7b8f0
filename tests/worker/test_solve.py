"""The real solve process, on the tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.spec import JobSpec
from worker.protocol import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Request

ROOT = Path(__file__).parents[2]


@pytest.fixture
def request_json(tiny_model: Path, text_file: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "scratch").mkdir()
    spec = JobSpec.model_validate(
        {
            "model": {"uri": str(tiny_model)},
            "output": {"uri_prefix": str(tmp_path / "output")},
            "pruning": {"sparsity": 0.25},
            "calibration": {"uri": str(text_file), "samples": 16, "sequence_length": 32},
            "runtime": {"device": "cpu"},
        }
    )
    request = Request(
        job_id="job",
        spec=spec,
        workspace_uri=str(tmp_path / "workspace"),
        scratch=str(tmp_path / "scratch"),
    )
    return request.model_dump(mode="json")


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker.solve"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(request: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    with start() as process:
        output, _ = process.communicate(json.dumps(request).encode(), timeout=120)
    return process.returncode, [json.loads(line) for line in output.splitlines()]


def test_a_solve_reports_progress_and_its_result(
    request_json: dict[str, Any], tmp_path: Path
) -> None:
    status, messages = run(request_json)
    assert status == EXIT_DONE
    assert messages[0].keys() == {"type", "device", "threads"}
    assert messages[0]["device"] == "cpu"
    kinds = {message["type"] for message in messages[1:-1]}
    assert kinds == {"progress", "log", "unit", "layers"}
    computed = {message["progress"]["unit"] for message in messages if "progress" in message}
    assert {"capture.0", "solve.3"} <= computed
    units = {message["name"]: message for message in messages if message["type"] == "unit"}
    assert {"tokens", "capture.0", "curve.3", "solve.0", "publish"} <= set(units)
    assert units["curve.3"]["kind"] == "curve"
    assert units["capture.0"]["seconds"] > 0
    assert units["capture.0"]["host_peak_bytes"] > 2**20
    checkpoint = (tmp_path / "output" / "model.safetensors").stat().st_size
    assert units["publish"]["written_bytes"] > checkpoint
    layers = [message["layers"] for message in messages if message["type"] == "layers"]
    assert layers[0].keys() == {"index", "width_before", "query_heads_before"}
    assert layers[1].keys() == {"index", "energy"}
    assert sum(layers[2]["width_after"]) < sum(layers[2]["width_before"])
    assert layers[-1].keys() == {"index", "reconstruction_error"}
    lines = [message["message"] for message in messages if message["type"] == "log"]
    assert any(line.startswith("solve.0 finished in") for line in lines)
    summary = messages[-1]["summary"]
    assert summary["parameters"]["after"] < summary["parameters"]["before"]
    assert summary["perplexity"] is None
    assert (tmp_path / "output" / "strucprune.json").exists()


def test_a_failure_is_told_with_its_field(request_json: dict[str, Any]) -> None:
    request_json["spec"]["model"]["uri"] = "/nowhere"
    status, messages = run(request_json)
    assert status == EXIT_FAILED
    assert messages[-1]["type"] == "error"
    assert messages[-1]["error"]["field"] == "model.uri"


def test_sigterm_stops_it_and_another_one_goes_on(
    request_json: dict[str, Any], tmp_path: Path
) -> None:
    with start() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request_json).encode())
        process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if message["type"] != "progress":
                continue
            progress = message["progress"]
            if progress["phase"] == "calibrating" and progress["layers_done"] >= 2:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == EXIT_STOPPED
    assert not (tmp_path / "output").exists() or not any((tmp_path / "output").iterdir())
    status, messages = run(request_json)
    assert status == EXIT_DONE
    assert next(each for each in messages if each["type"] == "progress")["progress"]["fraction"] > 0


def test_sigterm_is_heard_inside_a_long_unit(
    request_json: dict[str, Any], tmp_path: Path, text_file: Path
) -> None:
    """One curve of so wide a layer takes seconds; it is given up halfway, not finished."""
    from tests.support.tiny_llama import make_tiny_llama

    model = make_tiny_llama(tmp_path / "wide", layers=1, intermediate=2560)
    request_json["spec"]["model"]["uri"] = str(model)
    with start() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request_json).encode())
        process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if message["type"] == "progress" and message["progress"]["phase"] == "allocating":
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == EXIT_STOPPED
    workspace = tmp_path / "workspace/units"
    assert (workspace / "capture.0/manifest.json").exists()
    assert not (workspace / "curve.0/manifest.json").exists()
