"""The check for GPUs: its parts on the CPU with tiny shapes, and what is said without a GPU."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import distillation, families, forward, large_shape, memory
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.jobs import Text, phase_of
from benchmarks.gpu.parts import PARTS, TOTAL_SECONDS, Part, run_part
from benchmarks.gpu.phase_limits import PhaseLimits
from benchmarks.gpu.plans import GPUS, SHAPES, Gpu, plan_for, plans_text
from benchmarks.gpu.rates import product_rates
from benchmarks.gpu.record import Keep, Record
from benchmarks.gpu.requirements import NEEDED, complaint, missing
from benchmarks.gpu.shapes import raw_of
from benchmarks.gpu.supervise import supervise
from embedded.stack import ROOT
from strucprune_core.calibration import text_process
from strucprune_core.errors import InvalidSpec, Stopped
from strucprune_core.run.progress import Phase, Progress

RAW: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
TEXT = Text(samples=8, sequence_length=32)
PRUNING = {"statistics", "curves", "probes", "allocation", "solve", "writing"}


class Kept:
    """What a part hands on, as the file would have it at each moment."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def __call__(self, found: dict[str, Any]) -> None:
        self.states.append(json.loads(json.dumps(found)))

    @property
    def last(self) -> dict[str, Any]:
        return self.states[-1]


@pytest.fixture(scope="module", autouse=True)
def forked_text_process() -> Iterator[None]:
    from tests.support.forked_text import ForkedProcess

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_process, "_start", ForkedProcess)
        yield


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_families_agree_with_themselves(tmp_path: Path, kept: Kept) -> None:
    settings = families.Settings(families=("llama", "mixtral"), text=TEXT)
    families.measure("cpu", tmp_path, kept, settings)
    assert [[*state["families"]] for state in kept.states] == [["llama"], ["llama", "mixtral"]]
    for row in kept.last["families"].values():
        assert row == {
            "output_difference": 0.0,
            "widths_equal": True,
            "damage_difference": 0.0,
            "perplexity_difference": 0.0,
            "agrees": True,
        }


def test_a_family_that_fails_does_not_hide_the_next(tmp_path: Path, kept: Kept) -> None:
    # Both models have 2,048 positions.
    text = Text(samples=2, sequence_length=4096)
    settings = families.Settings(families=("opt", "gpt2"), text=text)
    families.measure("cpu", tmp_path, kept, settings)
    assert [row["agrees"] for row in kept.last["families"].values()] == [False, False]
    assert all("error" in row for row in kept.last["families"].values())


def test_agreement_is_within_stated_tolerances() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    base = families.Result(logits, [10, 20], damage=3.0, perplexity=50.0)

    def agrees(**changes: Any) -> bool:
        return bool(families.compared(base, replace(base, **changes))["agrees"])

    assert agrees()
    assert agrees(logits=logits + 1.9 * families.OUTPUT_TOLERANCE)  # The largest is 2.
    assert not agrees(logits=logits + 2.1 * families.OUTPUT_TOLERANCE)
    assert agrees(perplexity=50.2)
    assert not agrees(perplexity=50.3)
    assert agrees(widths=[11, 19], damage=3.002)
    assert not agrees(widths=[11, 19], damage=3.004)
    assert not agrees(logits=logits * float("nan"))
    assert not agrees(perplexity=float("nan"))


def test_memory_is_predicted(tmp_path: Path, kept: Kept) -> None:
    raw = {**RAW, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 1}
    shapes = [memory.Shape("tiny", raw, shares=(None, 0.7, 0.04))]
    memory.measure("cpu", tmp_path, kept, memory.Settings(shapes, Text(8, 64)))
    whole, limited, refused = kept.last["rows"]
    assert len(kept.states) == 3
    assert whole["limit_bytes"] is None
    assert whole["within_bar"]
    assert limited["within_bar"]
    assert limited["measured_bytes"] <= limited["limit_bytes"] < whole["measured_bytes"]
    assert not refused["within_bar"]
    assert "the job does not fit" in refused["error"]


def test_phases_are_compared_with_passes(tmp_path: Path, kept: Kept) -> None:
    settings = forward.Settings(RAW, TEXT, batch_sequences=3, rounds=2)
    forward.measure("cpu", tmp_path, kept, settings)
    first, last = kept.states[0], kept.last
    assert len(first["forward_seconds"]) == 2  # Known before the job runs.
    assert "seconds_by_phase" not in first
    assert set(last["seconds_by_phase"]) == PRUNING
    assert last["pruning_seconds"] == pytest.approx(
        sum(last["seconds_by_phase"].values()) - last["seconds_by_phase"]["writing"], abs=0.01
    )
    assert last["passes"] > 0


def test_a_cut_job_leaves_its_phases(tmp_path: Path, kept: Kept) -> None:
    settings = forward.Settings(RAW, TEXT, rounds=1, phase_limit_seconds=0.0)
    forward.measure("cpu", tmp_path, kept, settings)
    assert "took more than 0 s" in kept.last["stopped"]
    assert "passes" not in kept.last


def test_a_few_layers_are_extrapolated_and_say_so(tmp_path: Path, kept: Kept) -> None:
    raw = {**RAW, "num_hidden_layers": 4}
    settings = large_shape.Settings("tiny", raw, layers=2, text=TEXT, product_size=64)
    large_shape.measure("cpu", tmp_path, kept, settings)
    assert kept.last["device_peak_bytes_measured"] is None  # A CPU does not count without a limit.
    whole = kept.last["whole_model"]
    assert "extrapolated from 2 of 4 layers" in whole["how"]
    assert whole["seconds"] == pytest.approx(sum(whole["seconds_by_phase"].values()))
    assert set(kept.last["phases"]) == {"statistics", "curves", "probes", "solve", "writing"}
    solve = kept.last["phases"]["solve"]
    rate = kept.last["product_flops_per_second"]["float64"]
    assert solve["precision"] == "float64"
    assert solve["share_of_product_rate"] * rate == pytest.approx(solve["tflops_per_second"] * 1e12)


def test_extrapolation_follows_planned_work_or_layers() -> None:
    found = large_shape.extrapolated(
        {"curves": 1.0, "writing": 2.0},
        planned={"curve.0": 10, "report": 0},
        planned_of_whole={"curve.0": 10, "curve.1": 30, "report": 0},
        layers_ratio=2.0,
    )
    assert found == {"curves": 4.0, "writing": 4.0}


def test_a_step_of_distillation(tmp_path: Path, kept: Kept) -> None:
    settings = distillation.Settings(RAW, TEXT, batch_sequences=2)
    distillation.measure("cpu", tmp_path, kept, settings)
    assert kept.last["tokens_of_step"] == 64
    assert kept.last["distillation"]["steps"] == 1
    assert kept.last["seconds_by_phase"]["distill"] > 0


def test_another_kind_of_unit_is_a_phase_of_its_own() -> None:
    assert [phase_of(name) for name in ("curve.3", "solve.0", "distill.1", "report")] == [
        "curves",
        "solve",
        "distill",
        "writing",
    ]


def test_rates_are_of_all_precisions() -> None:
    rates = product_rates("cpu", 64)
    assert set(rates) == {"float64", "float32", "bfloat16"}
    assert all(rate > 0 for rate in rates.values())


def test_a_phase_has_a_limit_of_its_own() -> None:
    now = 0.0
    limits = PhaseLimits(10.0, clock=lambda: now)
    now = 9.0
    limits.check()
    limits.progress(Progress(Phase.CALIBRATING, 0, 1, 0.1))
    now = 18.0
    limits.check()
    limits.progress(Progress(Phase.INSPECTING, 0, 1, 0.1))  # It has had nine seconds.
    now = 19.5
    with pytest.raises(Stopped, match="'inspecting' took more than 10 s"):
        limits.check()


def test_the_parts_take_less_than_eight_minutes() -> None:
    assert sum(part.limit_seconds for part in PARTS.values()) <= TOTAL_SECONDS - 30


@pytest.mark.parametrize(
    ("program", "limit", "status"),
    [
        ("pass", 60.0, "done"),
        ("raise SystemExit(3)", 60.0, "failed"),
        ("import time; time.sleep(600)", 0.2, "time limit"),
    ],
)
def test_what_a_part_had_found_stays(
    tmp_path: Path, program: str, limit: float, status: str
) -> None:
    record = Record(tmp_path / "results" / "gpu.json")
    record.begin({"device": "none"})
    record.update("one", found={"rows": [1]})
    assert supervise([sys.executable, "-c", program], "one", limit, record) == status
    content = record.read()
    assert content["device"] == "none"
    assert content["parts"]["one"]["found"] == {"rows": [1]}
    assert content["parts"]["one"]["status"] == status
    assert content["parts"]["one"]["limit_seconds"] == limit
    assert [path.name for path in record.path.parent.iterdir()] == ["gpu.json"]


def test_why_a_part_failed_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: str, folder: Path, keep: Keep) -> None:
        keep({"rows": [device]})
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(PARTS, "memory", Part(fail, 1.0))
    record = Record(tmp_path / "gpu.json")
    record.begin({})
    with pytest.raises(RuntimeError):
        run_part("memory", "cpu", tmp_path, record)
    part = record.read()["parts"]["memory"]
    assert part == {"found": {"rows": ["cpu"]}, "error": "RuntimeError: no kernel image"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_prints_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", str(tmp_path / "gpu.json")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No GPU is available to this process, so nothing was measured.\n")
    for name in (*SHAPES, *(f"| {gpu.name}, {gpu.memory_gib:g} GiB |" for gpu in GPUS)):
        assert name in out
    assert not (tmp_path / "gpu.json").exists()


def test_plans_name_their_assumptions() -> None:
    text = plans_text(SHAPES[:1], GPUS[:1])
    assert "L4 30.3 and 0.473" in text
    assert "at 2 GB/s, an assumption" in text


def test_times_follow_from_the_rates() -> None:
    raw = raw_of("llama-7b", 1)
    plan, twice = plan_for(GPUS[2], raw), plan_for(_twice_as_fast(GPUS[2]), raw)
    assert twice.compute_seconds == pytest.approx(plan.compute_seconds / 2)
    assert twice.device_bytes == plan.device_bytes
    one = plan_for(Gpu("any", 80, float32=1.0, float64=float("inf")), raw)
    in_float32 = {"verification", "calibration", "grams", "probes"}
    assert one.compute_seconds == sum(plan.flops[name] for name in in_float32)


def _twice_as_fast(gpu: Gpu) -> Gpu:
    return replace(gpu, float32=2 * gpu.float32, float64=2 * gpu.float64)


def test_a_gpu_that_is_too_small_is_said_to_be() -> None:
    gpu = Gpu("small", 0.01, 1.0, 1.0)
    with pytest.raises(InvalidSpec, match="does not fit"):
        plan_for(gpu, raw_of("llama-7b"))
    text = plans_text(["llama-7b"], [gpu, GPUS[0]])
    assert "| small, 0.01 GiB | does not fit: the job does not fit 9,663,676 bytes" in text
    assert "| L4, 24 GiB |" in text


def test_what_is_missing_is_named_at_once() -> None:
    assert missing() == []
    lacking = missing({"no-such-package": "1.0", "torch": "99.1", "numpy": "1.26"})
    assert lacking == ["no-such-package 1.0", f"torch 99.1 (here {version('torch')})"]
    assert complaint(["a 1", "b 2"]) == (
        "benchmarks.gpu needs, in these releases or newer: a 1, b 2"
    )


def test_it_needs_the_releases_that_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    stated = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    least = dict(
        re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(filter(_is_text, stated)), re.MULTILINE)
    )
    assert {name: least[name] for name in NEEDED} == NEEDED


def _is_text(entry: object) -> bool:
    return isinstance(entry, str)
