"""How commands fail: what is wrong, what to do, and the field as its option."""

from __future__ import annotations

import re
from typing import Any

import pytest

from strucprune_core.client.errors import from_problem
from strucprune_core.client.models import Problem
from strucprune_core.commands.failures import option_name, show_failure
from strucprune_core.commands.job_body import parse_spec
from strucprune_core.errors import InvalidSpec, NumericalFailure, StrucPruneError

JOB: dict[str, Any] = {
    "model": {"uri": "m"},
    "output": {"uri_prefix": "o"},
    "calibration": {"uri": "t.txt"},
    "pruning": {"sparsity": 0.3},
}
OF_PYDANTIC = re.compile(
    "Input should|unable to parse|Field required|Extra inputs|valid (tuple|dict)"
)


def shown(error: StrucPruneError, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_failure(error)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("section", "change", "lines"),
    [
        ("pruning", {"sparsity": 1.5}, ["--sparsity: a fraction between 0 and 1 is meant, not"]),
        (
            "pruning",
            {"sparsity": "much"},
            ["--sparsity: must be a number, like 0.3 (got 'much')."],
        ),
        (
            "pruning",
            {"rounds": "two"},
            ["--rounds: must be a whole number, like 4 (got 'two')."],
        ),
        ("pruning", {"rounds": 9}, ["--rounds: must be at most 8 (got 9)."]),
        ("pruning", {"damping": 0.0}, ["--damping: must be greater than 0.0 (got 0.0)."]),
        ("pruning", {"solver": "x"}, ["--solver: must be one of these: 'obs' or 'admm' (got 'x')"]),
        ("pruning", {"exports": ["x"]}, ["--export: must be one of these: 'gguf', 'gguf_q8_0', "]),
        (
            "pruning",
            {"sparsty": 0.3},
            ["pruning.sparsty: is no field that there is", "Correct its name, or leave it out."],
        ),
        ("calibration", {"samples": 1}, ["--samples: must be at least 2 (got 1)."]),
        ("output", {}, ["--output is missing.", "Name an empty directory, or s3://bucket/prefix."]),
        ("model", {}, ["MODEL is missing.", "Name a directory, s3://"]),
        ("calibration", {"uri": None}, ["--calibration is missing.", "Name a text, or use self"]),
        (
            "calibration",
            {"uri": None, "source": "file"},
            ["--calibration is missing.", "Name a text, or use self"],
        ),
        ("pruning", {"sparsity": None}, ["--sparsity is missing.", "Give it a fraction, such as"]),
        (
            "calibration",
            {"uri": "t.txt", "chat_template": True},
            [
                "calibration: chat_template needs documents with fields, and the text is plain.",
                "Use a jsonl or parquet file, and set format if its name does not show which",
            ],
        ),
    ],
)
def test_a_job_that_is_wrong(
    section: str, change: dict[str, Any], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {} if section in ("output", "model") else JOB[section]
    with pytest.raises(InvalidSpec) as raised:
        parse_spec({**JOB, section: {**kept, **change}})
    first, *more = shown(raised.value, capsys)
    assert len(more) == len(lines) - 1
    for line, expected in zip([first, *more], lines, strict=True):
        assert line.removeprefix("error (invalid_spec): ").strip().startswith(expected)
        assert not OF_PYDANTIC.search(line)


def test_a_failure_in_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    error = NumericalFailure("no [bold]damping[/] is enough\x1b[2J", layer=3, phase="solving")
    error.remedy = "Raise damping"
    assert shown(error, capsys) == [
        r"error (numerical_failure): no [bold]damping[/] is enough\x1b[2J (layer 3, solving).",
        "  Raise damping.",
    ]


def test_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    uri = "s3://bucket/" + "folder/" * 30
    assert len(shown(InvalidSpec(f"{uri} is wrong", remedy=f"Use {uri}new."), capsys)) == 2


@pytest.mark.parametrize("several", [False, True])
def test_what_a_service_refuses(several: bool, capsys: pytest.CaptureFixture[str]) -> None:
    errors = [
        {"pointer": "/pruning/sparsity", "code": "x", "detail": "Ask for at most 0.4."},
        {"pointer": "/pruning/exports/0", "code": "x", "detail": "Leave it out."},
    ]
    problem = Problem.model_validate(
        {
            "status": 422,
            "code": "invalid",
            "detail": "It cannot work.",
            "errors": errors[: 2 if several else 1],
        }
    )
    lines = shown(from_problem(problem), capsys)
    told = ["--sparsity: Ask for at most 0.4.", "--export: Leave it out."]
    if several:
        assert lines == ["error (invalid): It cannot work.", f"  {told[0]}", f"  {told[1]}"]
    else:
        assert lines == [f"error (invalid): {told[0]}"]


@pytest.mark.parametrize(
    ("status", "code", "cure"),
    [
        (401, "unauthorized", "strucprune keys create"),
        (403, "insufficient_scope", "strucprune keys create --scope"),
        (404, "job_not_found", "strucprune jobs list"),
        (404, "artifact_gone", "run the job again"),
    ],
)
def test_a_refusal_has_its_cure(
    status: int, code: str, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(status=status, code=code, detail="It was refused.")
    first, second = shown(from_problem(problem), capsys)
    assert first == f"error ({code}): It was refused."
    assert cure in second


def test_names_of_fields() -> None:
    assert option_name("pruning.recover.steps") == "--recover-steps"
    assert option_name("/calibration/uri") == "--calibration"
    assert option_name("/calibration") == "calibration"
    assert option_name("state") == "--state"
    assert option_name("pruning.max_sparsity_by_layer.3") == "--max-sparsity-by-layer"
    assert option_name("model.uri") == "MODEL"
    assert option_name("workspace") == "--workspace"
    assert option_name("pruning") == "pruning"
