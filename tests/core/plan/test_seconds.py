"""Times that are predicted from rates: they follow the work, the device and where weights lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strucprune_core.method.linalg.panels import WIDE_COLUMNS
from strucprune_core.models.precision import Precision
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.seconds import (
    LEAST,
    LEAST_OF_TASKS,
    MOST,
    MOST_OF_TASKS,
    MOST_ON_GPU,
    START_SECONDS,
    estimated_seconds,
    publishing_seconds,
    runs_on,
)
from strucprune_core.plan.speed import ROUNDS, shape
from strucprune_core.plan.traffic import StoredWeights, unit_traffic
from strucprune_core.plan.unit_seconds import (
    EVERY_UNIT_SECONDS,
    FIXED_SECONDS,
    LOADED_BYTES_PER_PARAMETER,
    READ_BYTES_PER_PARAMETER,
    SLOWDOWN,
    StoredModel,
    rate_of,
    unit_seconds,
)
from strucprune_core.plan.work import computing_units, unit_flops
from strucprune_core.run.progress import Phase
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.read_ahead import CACHE_BYTES

# So slow that fixed times do not matter beside computing.
RATES = DeviceRates(
    device="a processor",
    kind="cpu",
    threads=1,
    products={"float32": {64: 4e6, 256: 16e6}, "float64": {64: 2e6, 256: 8e6}},
    memory_bytes_per_second=1e6,
)
WEIGHTS = StoredWeights(4.0, 4)
NEAR = StoredModel(1000, True, WEIGHTS)


@pytest.fixture
def facts(tiny_model: Path) -> ModelFacts:
    return inspect_model(LocalStore(tiny_model))


def job(evaluate: bool = True, **pruning: Any) -> JobSpec:
    body: dict[str, Any] = {
        "model": {"uri": "/model"},
        "output": {"uri_prefix": "/out"},
        "pruning": {"sparsity": 0.25, **pruning},
        "calibration": {"uri": "/text.txt", "samples": 4, "sequence_length": 64},
    }
    if evaluate:
        body["evaluation"] = {"uri": "/other.txt", "sequences": 4, "sequence_length": 64}
    return JobSpec.model_validate(body)


def seconds_of(
    spec: JobSpec, facts: ModelFacts, rates: DeviceRates = RATES, stored: StoredModel = NEAR
) -> dict[str, float]:
    units = computing_units(spec, facts.config)
    plan = plan_job(spec, facts.config)
    return unit_seconds(units, spec, facts.config, plan, rates, stored)


def test_rates_between_measured_sizes() -> None:
    assert RATES.product("float32", 64) == pytest.approx(4e6)
    assert RATES.product("float32", 128) == pytest.approx(8e6)  # halfway, by the logarithm
    assert RATES.product("float64", 256) == pytest.approx(8e6)
    # What was not measured is taken from the nearest size, or from float32.
    assert RATES.product("float32", 1) == pytest.approx(4e6)
    assert RATES.product("float32", 10**6) == pytest.approx(16e6)
    assert RATES.product("bfloat16", 64) == pytest.approx(4e6)


def test_a_unit_takes_the_time_of_its_operations_and_its_weights(facts: ModelFacts) -> None:
    spec = job()
    plan = plan_job(spec, facts.config)
    units = computing_units(spec, facts.config)
    work = unit_flops(units, spec, facts.config, plan.panels)
    moved = unit_traffic(units, spec, facts.config, plan.tiles, plan.panels, WEIGHTS)
    found = seconds_of(spec, facts)
    assert set(found) == {unit.name for unit in units}

    def loading(unit: str) -> float:
        loaded = max(moved[unit].read, moved[unit].to_device) / 4
        return loaded * LOADED_BYTES_PER_PARAMETER / RATES.memory_bytes_per_second

    # An FFN of 192 channels, in float64.
    assert found["curve.1"] == pytest.approx(
        work["curve.1"]["curves"] * SLOWDOWN["curves"] / RATES.product("float64", 192)
        + loading("curve.1")
        + EVERY_UNIT_SECONDS
    )
    # Hidden states of 64, in float32.
    assert found["capture.0"] == pytest.approx(
        work["capture.0"]["calibration"] * SLOWDOWN["calibration"] / RATES.product("float32", 64)
        + work["capture.0"]["grams"] * SLOWDOWN["grams"] / RATES.product("float32", 192)
        + loading("capture.0")
        + EVERY_UNIT_SECONDS
    )
    assert loading("capture.0") > 0.0


def test_a_device_twice_as_fast_takes_half_the_time(facts: ModelFacts) -> None:
    twice = RATES.model_copy(
        update={
            "products": {
                name: {size: 2 * rate for size, rate in sizes.items()}
                for name, sizes in RATES.products.items()
            },
            "memory_bytes_per_second": 2e6,
        }
    )
    slow, fast = seconds_of(job(), facts), seconds_of(job(), facts, twice)
    for name in ("capture.2", "curve.0", "probe.0", "solve.3", "evaluate.dense"):
        fixed = EVERY_UNIT_SECONDS
        assert slow[name] - fixed == pytest.approx(2 * (fast[name] - fixed))


def test_operations_run_at_the_rate_of_their_precision(facts: ModelFacts) -> None:
    gpu = RATES.model_copy(
        update={
            "kind": "cuda",
            "products": {**RATES.products, "bfloat16": {64: 40e6}, "tf32": {64: 20e6}},
        }
    )
    spec = job()
    units = computing_units(spec, facts.config)
    plan = plan_job(spec, facts.config)
    work = unit_flops(units, spec, facts.config, plan.panels)["capture.0"]

    def seconds(precision: Precision) -> dict[str, float]:
        return unit_seconds(units, spec, facts.config, plan, gpu, NEAR, precision)

    exact, narrow, tf32 = (seconds(each) for each in ("float32", "bfloat16", "tf32"))
    assert exact["capture.0"] - narrow["capture.0"] == pytest.approx(
        work["calibration"] * SLOWDOWN["calibration"] * (1 / 4e6 - 1 / 40e6)
        + work["grams"]
        * SLOWDOWN["grams"]
        * (1 / RATES.product("float32", 192) - 1 / 20e6)  # statistics are float32 at heart
    )
    assert narrow["evaluate.dense"] < tf32["evaluate.dense"] < exact["evaluate.dense"]
    assert exact["curve.0"] == narrow["curve.0"] == tf32["curve.0"]
    # A GPU that is slow in float64 solves in float32, here twice as fast.
    quick = gpu.model_copy(update={"solves_in": "float32"})
    solved = unit_seconds(units, spec, facts.config, plan, quick, NEAR)["curve.0"]
    curves = unit_flops(units, spec, facts.config, plan.panels)["curve.0"]["curves"]
    saved = 1 / RATES.product("float64", 192) - 1 / RATES.product("float32", 192)
    assert exact["curve.0"] - solved == pytest.approx(curves * SLOWDOWN["curves"] * saved)
    # What crosses takes its time on a GPU.
    far = quick.model_copy(update={"copy_bytes_per_second": 1e4})
    slow = unit_seconds(units, spec, facts.config, plan, far, NEAR)["capture.0"]
    moved = unit_traffic(units, spec, facts.config, plan.tiles, plan.panels, WEIGHTS)["capture.0"]
    assert slow - exact["capture.0"] == pytest.approx(
        (moved.to_device + moved.to_host) * (1e-4 - 1 / quick.copy_bytes_per_second)
    )


@pytest.mark.parametrize(
    ("kind", "columns", "wanted"),
    [
        ("cpu", WIDE_COLUMNS, "float64"),
        ("cpu", WIDE_COLUMNS + 1, "float32"),
        ("cuda", WIDE_COLUMNS + 1, "float64"),
    ],
)
def test_wide_curves_are_computed_in_float32_on_a_cpu(kind: str, columns: int, wanted: str) -> None:
    rates = RATES.model_copy(update={"kind": kind})
    assert rate_of("curves", "float32", rates, columns) == wanted
    assert rate_of("solves", "float32", rates, columns) == "float64"


def test_far_weights_take_the_time_of_the_network(facts: ModelFacts) -> None:
    small = StoredModel(CACHE_BYTES, False, WEIGHTS)
    large = StoredModel(2 * CACHE_BYTES, False, WEIGHTS)
    near = seconds_of(job(), facts)
    unknown = seconds_of(job(), facts, stored=small)
    known = seconds_of(job(), facts, RATES.model_copy(update={"read_bytes_per_second": 1e6}), small)
    assert near["weights"] < unknown["weights"] < known["weights"]
    size = facts.parameters * WEIGHTS.file_bytes
    assert known["weights"] - near["weights"] == pytest.approx(size * (1e-6 - 1e-9))
    # A model that fits the cache is not sent again.
    assert known["capture.0"] == pytest.approx(near["capture.0"], rel=1e-6)
    again = seconds_of(job(), facts, RATES.model_copy(update={"read_bytes_per_second": 1e6}), large)
    assert again["capture.0"] > near["capture.0"] + 0.1


def test_tokens_of_a_speed_measurement_read_all_weights(facts: ModelFacts) -> None:
    spec = job()
    assert spec.evaluation is not None
    judged = spec.evaluation.model_copy(update={"speed": True})
    spec = spec.model_copy(update={"evaluation": judged})
    found = seconds_of(spec, facts)["speed"]
    passes = 2 * (ROUNDS + 1) * shape(spec, facts.config)[1]
    read = passes * facts.parameters * READ_BYTES_PER_PARAMETER
    assert found > read / RATES.memory_bytes_per_second + FIXED_SECONDS["speed"]


def test_a_job_takes_what_its_units_take(facts: ModelFacts) -> None:
    spec = job()
    found = estimated_seconds(spec, facts, RATES)
    assert found.seconds == pytest.approx(
        START_SECONDS
        + sum(seconds_of(spec, facts, stored=StoredModel.of(facts)).values())
        + publishing_seconds(spec, facts, RATES),
        abs=0.1,
    )
    assert found.seconds == pytest.approx(sum(found.phases.values()), abs=0.5)
    assert found.least_seconds < found.seconds < found.most_seconds
    assert found.most_seconds == pytest.approx(MOST * found.seconds, abs=0.5)
    assert (found.device, found.threads, found.workers) == ("a processor", 1, 1)
    without = estimated_seconds(job(evaluate=False), facts, RATES)
    assert Phase.EVALUATING in found.phases
    assert without.phases.get(Phase.EVALUATING, 0.0) < found.phases[Phase.EVALUATING]


def test_what_tasks_take_is_a_guess(facts: ModelFacts) -> None:
    plain = estimated_seconds(job(), facts, RATES)
    spec = job()
    assert spec.evaluation is not None
    judged = spec.evaluation.model_copy(update={"tasks": ("piqa",), "limit": 100})
    found = estimated_seconds(spec.model_copy(update={"evaluation": judged}), facts, RATES)
    tasks = found.seconds - plain.seconds
    assert tasks > 10.0
    assert found.least_seconds == pytest.approx(
        LEAST * plain.seconds + LEAST_OF_TASKS * tasks, abs=0.3
    )
    assert found.most_seconds == pytest.approx(
        MOST * plain.seconds + MOST_OF_TASKS * tasks, abs=0.5
    )


@pytest.mark.parametrize(
    ("device", "on_cpu", "on_gpu"),
    [("auto", True, True), ("cpu", True, False), ("cuda", False, True), ("cuda:1", False, True)],
)
def test_a_job_runs_where_its_device_is(device: str, on_cpu: bool, on_gpu: bool) -> None:
    spec = job()
    spec = spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"device": device})})
    assert runs_on(spec, RATES) == on_cpu
    assert runs_on(spec, RATES.model_copy(update={"kind": "cuda"})) == on_gpu


def test_no_job_has_shown_how_good_the_prediction_is_on_a_gpu(facts: ModelFacts) -> None:
    found = estimated_seconds(job(), facts, RATES.model_copy(update={"kind": "cuda"}))
    assert found.most_seconds == pytest.approx(MOST_ON_GPU * found.seconds, abs=0.5)


def test_what_sizes_share_is_done_once(facts: ModelFacts) -> None:
    one = estimated_seconds(job(), facts, RATES)
    two = estimated_seconds(job(sparsity=None, sizes=[0.25, 0.4]), facts, RATES)
    assert two.phases[Phase.CALIBRATING] == one.phases[Phase.CALIBRATING]
    assert two.phases[Phase.SOLVING] > 1.5 * one.phases[Phase.SOLVING]


def test_each_try_takes_its_time(facts: ModelFacts) -> None:
    one = estimated_seconds(job(), facts, RATES)
    target = {"max_perplexity_ratio": 1.1, "tries": 3}
    searching = estimated_seconds(job(sparsity=None, target=target).at(0.25), facts, RATES)
    assert searching.phases[Phase.SOLVING] > 3.5 * one.phases[Phase.SOLVING]
