"""Targets: the least sparsity whose result is small enough, or a refusal with the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from strucprune_core.errors import InvalidSpec
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import check_reach, examine_job, inspect_model
from strucprune_core.plan.targets import result_of
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=3, intermediate=96)


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return inspect_model(LocalStore(model))


def aimed(model: Path, text: Path, root: Path, target: dict[str, Any], **pruning: Any) -> JobSpec:
    changes = {"sparsity": None, "target": target, **pruning}
    return tiny_spec(model, text, root / "out", pruning=changes, evaluation=EASY)


def found(spec: JobSpec) -> JobSpec:
    """The job with its sparsity; it has no issue."""
    examined = examine_job(spec, lambda uri: LocalStore(Path(uri)))
    assert examined.issues == []
    return examined.spec


KINDS: list[dict[str, Any]] = [
    {},
    {"layout": "uniform"},
    {"structures": ["ffn_channels", "kv_groups"], "allocation": "threshold"},
    {"structures": ["layers"]},
    {"structures": ["ffn_channels", "layers"]},
]


@pytest.mark.parametrize("pruning", KINDS)
@pytest.mark.parametrize("kind", ["parameters", "bytes", "memory_bytes"])
def test_the_least_sparsity_that_is_small_enough(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts, kind: str, pruning: Any
) -> None:
    more = {"context_tokens": 64, "batch_sequences": 3} if kind == "memory_bytes" else {}
    whole = {"parameters": facts.parameters, "bytes": facts.index.read_bytes}
    cache = (facts.config.kv_cache_values_per_token or 0) * 4 * 64 * 3
    dense = whole.get(kind, facts.index.read_bytes + cache)
    spec = aimed(model, text_file, tmp_path, {kind: round(0.85 * dense), **more}, **pruning)
    at = found(spec)
    assert at.pruning.sparsity is not None
    assert result_of(at, facts) <= round(0.85 * dense)
    less = at.at(at.pruning.sparsity - 2e-6)
    try:
        check_reach(less.pruning, facts.config)
    except InvalidSpec:
        return  # Less than a step.
    assert result_of(less, facts) > round(0.85 * dense)


@pytest.mark.parametrize("kind", ["parameters", "bytes"])
def test_a_job_reaches_its_target(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts, kind: str
) -> None:
    most = round(0.8 * (facts.parameters if kind == "parameters" else facts.index.read_bytes))
    report = run(aimed(model, text_file, tmp_path, {kind: most}), tmp_path)
    assert report.target is not None
    assert report.target.most == most
    assert 0.97 * most < report.target.reached <= 1.001 * most
    assert report.spec["pruning"]["target"][kind] == most
    assert report.sparsity.requested == report.spec["pruning"]["sparsity"]
    assert not [line for line in report.warnings if "target" in line]


def test_memory_counts_the_cache_that_is_left(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts
) -> None:
    structures = ["ffn_channels", "kv_groups"]
    target = {"memory_bytes": round(0.8 * facts.index.read_bytes), "context_tokens": 16}
    report = run(aimed(model, text_file, tmp_path, target, structures=structures), tmp_path)
    assert report.target is not None
    cache = report.after.kv_cache_bytes_per_token
    assert cache is not None
    assert report.target.reached == report.after.bytes + 16 * cache


def test_an_export_can_be_what_is_counted(
    model: Path, text_file: Path, tmp_path: Path, facts: ModelFacts
) -> None:
    whole = estimate_job(
        tiny_spec(model, text_file, tmp_path, pruning={"sparsity": 0.1, "exports": ["gguf"]}), facts
    )
    most = round(0.9 * whole.export_bytes["gguf"])
    target = {"bytes": most, "of": "gguf"}
    at = found(aimed(model, text_file, tmp_path, target, exports=["gguf"]))
    estimate = estimate_job(at, facts)
    assert 0.97 * most < estimate.export_bytes["gguf"] <= most


def test_what_cannot_be_reached_is_refused_with_the_nearest(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    def issue(target: dict[str, Any], **pruning: Any) -> tuple[str | None, str, str | None]:
        spec = aimed(model, text_file, tmp_path, target, **pruning)
        first, *others = examine_job(spec, lambda uri: LocalStore(Path(uri))).issues
        assert others == []
        return first.field, first.message, first.remedy

    field, message, remedy = issue({"parameters": 1000})
    assert field == "pruning.target.parameters"
    assert "the least that can be reached is" in message
    least = int((remedy or "").split("at least ")[1].split(", remove")[0].replace(",", ""))
    at = found(aimed(model, text_file, tmp_path, {"parameters": least}))
    assert at.pruning.sparsity is not None

    field, message, _ = issue({"bytes": 10**9})
    assert field == "pruning.target.bytes"
    assert "as it is" in message

    field, _, _ = issue({"parameters": 100_000}, structures=["query_heads"], layout="uniform")
    assert field is not None


def test_a_sparsity_alone_needs_no_target(model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = tiny_spec(model, text_file, tmp_path / "out")
    assert found(spec) is spec


@pytest.mark.parametrize(
    ("pruning", "word"),
    [
        ({"sparsity": 0.3, "target": {"parameters": 5}}, "exclude"),
        ({"target": {"parameters": 5, "bytes": 5}}, "exactly one"),
        ({"target": {}}, "exactly one"),
        ({"target": {"parameters": 5, "of": "gguf"}, "exports": ["gguf"]}, "belongs to bytes"),
        ({"target": {"bytes": 5, "of": "gguf"}}, "not written"),
        ({"sizes": [0.2], "target": {"bytes": 5}}, "exclude"),
    ],
)
def test_what_does_not_go_together(
    model: Path, text_file: Path, tmp_path: Path, pruning: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValidationError, match=word):
        tiny_spec(model, text_file, tmp_path, pruning={"sparsity": None, **pruning})


@pytest.mark.parametrize(
    ("text", "number"), [("120M", 120_000_000), ("7b", 7 * 10**9), ("1.5K", 1500), ("42", 42)]
)
def test_parameters_as_people_write_them(
    model: Path, text_file: Path, tmp_path: Path, text: str, number: int
) -> None:
    target = aimed(model, text_file, tmp_path, {"parameters": text}).pruning.target
    assert target is not None
    assert target.parameters == number
