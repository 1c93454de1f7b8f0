"""Jobs that ask for a speedup: the least sparsity that reaches it by a device's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from strucprune_core.errors import InvalidSpec
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import check_reach, examine_job, inspect_model
from strucprune_core.plan.latency import pass_model
from strucprune_core.plan.predicted_speed import likely_shape, predicted_speed
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.support.device_tables import made_table
from tests.support.tiny_experts import save_tiny_experts
from tests.support.tiny_llama import make_tiny_llama

TABLE = made_table()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=3, intermediate=192)


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return inspect_model(LocalStore(model))


def faster(model: Path, text: Path, root: Path, target: dict[str, Any], **pruning: Any) -> JobSpec:
    own = {} if "device" in target else {"device_table": TABLE.model_dump(mode="json")}
    changes = {"sparsity": None, "target": {"context_tokens": 64, **own, **target}, **pruning}
    return tiny_spec(model, text, root / "out", pruning=changes, evaluation=EASY)


def found(spec: JobSpec) -> JobSpec:
    """The job with its sparsity; it has no issue."""
    examined = examine_job(spec, lambda uri: LocalStore(Path(uri)))
    assert examined.issues == []
    return examined.spec


def issue(spec: JobSpec) -> InvalidSpec:
    """The only issue of a job."""
    (first,) = examine_job(spec, lambda uri: LocalStore(Path(uri))).issues
    assert isinstance(first, InvalidSpec)
    return first


KINDS: list[dict[str, Any]] = [
    {},
    {"layout": "uniform"},
    {"multiple_of": 16},
    {"structures": ["ffn_channels", "kv_groups"]},
    {"structures": ["query_heads"]},
    {"structures": ["layers"]},
    {"structures": ["attention_blocks"]},
]


@pytest.mark.parametrize("pruning", KINDS)
@pytest.mark.parametrize("of", ["decode", "prefill"])
def test_the_least_sparsity_that_is_fast_enough(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts, of: str, pruning: Any
) -> None:
    spec = faster(model, text_file, tmp_path, {"speedup": 1.05, "of": of}, **pruning)
    at = found(spec)
    assert at.pruning.sparsity is not None
    times = pass_model(TABLE, of, 1)
    context = 64 if of == "decode" else 0
    dense = times.seconds(facts.config, context)

    def gain(spec: JobSpec) -> float:
        return dense / times.seconds(likely_shape(facts.config, spec.pruning), context)

    assert gain(at) >= 1.05
    speed = estimate_job(at, facts).predicted_speed
    assert speed is not None
    assert speed.of == of
    assert speed.predicted == pytest.approx(gain(at))
    assert speed.table_sha256 == TABLE.sha256()
    less = at.at(at.pruning.sparsity - 2e-6)
    try:
        check_reach(less.pruning, facts.config)
    except InvalidSpec:
        return  # Less than a step.
    assert gain(less) < 1.05


def test_more_speed_takes_more_sparsity(model: Path, text_file: Path, tmp_path: Path) -> None:
    asked = [1.02, 1.05, 1.1, 1.15]
    specs = [found(faster(model, text_file, tmp_path, {"speedup": each})) for each in asked]
    sparsities = [spec.pruning.asked_sparsity for spec in specs]
    assert sparsities == sorted(set(sparsities))


def test_a_job_says_what_its_result_comes_to(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts
) -> None:
    spec = faster(
        model, text_file, tmp_path, {"speedup": 1.1}, structures=["ffn_channels", "kv_groups"]
    )
    report = run(spec, tmp_path)
    speed = report.predicted_speed
    assert speed is not None
    assert report.target is None
    assert (speed.asked, speed.of, speed.table, speed.context_tokens) == (1.1, "decode", "own", 64)
    # By the widths that the result has, which layers do not share equally.
    left = inspect_model(LocalStore(tmp_path / "out")).config
    times = pass_model(TABLE, "decode", 1)
    assert speed.pruned_seconds == pytest.approx(times.seconds(left, 64))
    assert speed.dense_seconds == pytest.approx(times.seconds(facts.config, 64))
    assert speed.predicted == pytest.approx(speed.dense_seconds / speed.pruned_seconds)
    assert report.spec["pruning"]["target"]["device_table"] == TABLE.model_dump(mode="json")
    slower = [line for line in report.warnings if "was asked for, and by the device's" in line]
    assert bool(slower) == (speed.predicted < 0.99 * 1.1)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Predicted speed" in page
    assert TABLE.sha256() in page


def test_widths_of_any_number_are_warned_of(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts
) -> None:
    def warnings(**pruning: Any) -> list[str]:
        spec = found(faster(model, text_file, tmp_path, {"speedup": 1.05}, **pruning))
        return [line for line in estimate_job(spec, facts).warnings if "multiples of 16" in line]

    assert len(warnings()) == 1
    assert warnings(multiple_of=16) == []
    assert warnings(structures=["layers"]) == []


def test_what_cannot_be_reached_is_refused_with_the_nearest(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    error = issue(faster(model, text_file, tmp_path, {"speedup": 50}))
    assert error.field == "pruning.target.speedup"
    assert "no sparsity makes decode 50 times as fast" in error.message
    most = float((error.remedy or "").split("at most ")[1].split(",")[0])
    at = found(faster(model, text_file, tmp_path, {"speedup": most}))
    assert at.pruning.asked_sparsity > 0.5
    further = issue(faster(model, text_file, tmp_path, {"speedup": most + 0.002}))
    assert further.field == "pruning.target.speedup"


@pytest.mark.parametrize(
    ("target", "field", "words"),
    [
        ({"device": "abacus"}, "device", "no table of a device named 'abacus'"),
        ({"batch_sequences": 3}, "batch_sequences", "decode of 1, 4 sequences"),
        ({"context_tokens": 5000}, "context_tokens", "ends at 4,096"),
        ({"of": "prefill", "batch_sequences": 4}, "batch_sequences", "prefill of 1 sequences"),
        (
            {"device_table": made_table(dtype="bfloat16").model_dump(mode="json")},
            "device",
            "measured in bfloat16, and the result is in float32",
        ),
    ],
)
def test_what_the_table_does_not_have(
    model: Path, text_file: Path, tmp_path: Path, target: dict[str, Any], field: str, words: str
) -> None:
    error = issue(faster(model, text_file, tmp_path, {"speedup": 1.1, **target}))
    assert error.field == f"pruning.target.{field}"
    assert words in error.message
    assert error.remedy


def test_the_dtype_is_that_of_the_result(model: Path, text_file: Path, tmp_path: Path) -> None:
    table = made_table(dtype="bfloat16").model_dump(mode="json")
    spec = faster(model, text_file, tmp_path, {"speedup": 1.1, "device_table": table})
    output = spec.output.model_copy(update={"dtype": "bfloat16"})
    assert found(spec.model_copy(update={"output": output})).pruning.sparsity is not None


def test_blocks_beside_others_are_refused(model: Path, text_file: Path, tmp_path: Path) -> None:
    structures = ["ffn_channels", "layers"]
    error = issue(faster(model, text_file, tmp_path, {"speedup": 1.1}, structures=structures))
    assert error.field == "pruning.target.speedup"
    assert "not known before they are measured" in error.message


@pytest.mark.parametrize("structure", ["experts", "ffn_channels"])
def test_models_with_experts_are_refused(text_file: Path, tmp_path: Path, structure: str) -> None:
    model = save_tiny_experts("mixtral", tmp_path / "model")
    error = issue(faster(model, text_file, tmp_path, {"speedup": 1.1}, structures=[structure]))
    assert error.field == "pruning.target.speedup"
    assert "in no table" in error.message or "no table says" in error.message


def test_another_target_predicts_nothing(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts
) -> None:
    assert predicted_speed(tiny_spec(model, text_file, tmp_path), facts) is None
    spec = tiny_spec(
        model, text_file, tmp_path, pruning={"sparsity": None, "target": {"parameters": 150_000}}
    )
    assert predicted_speed(spec.at(0.3), facts) is None


OWN = TABLE.model_dump(mode="json")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"speedup": 1.3}, "needs device or device_table"),
        ({"speedup": 1.3, "device": "x", "device_table": OWN}, "not both"),
        ({"speedup": 1.3, "device": "x", "parameters": 5}, "exactly one"),
        ({"speedup": 1.3, "device": "x", "of": "checkpoint"}, "decode or prefill"),
        ({"speedup": 1.3, "device": "x", "of": "gguf"}, "decode or prefill"),
        ({"speedup": 1.0, "device": "x"}, "greater than 1"),
        ({"bytes": 5, "of": "decode"}, "decode or prefill for speedup"),
        ({"parameters": 5, "of": "decode"}, "belongs to bytes and speedup"),
        ({"parameters": 5, "device": "x"}, "belong to speedup"),
        ({"bytes": 5, "device_table": OWN}, "belong to speedup"),
        ({"speedup": 1.3, "device_table": {**OWN, "groups": [1]}}, "attention must hold"),
    ],
)
def test_what_does_not_go_together(
    model: Path, text_file: Path, tmp_path: Path, target: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny_spec(model, text_file, tmp_path, pruning={"sparsity": None, "target": target})


def test_decode_is_what_is_to_be_faster_by_default(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    target = faster(model, text_file, tmp_path, {"speedup": 1.1}).pruning.target
    assert target is not None
    assert target.of == "decode"
    assert type(target).model_validate(target.model_dump()) == target
