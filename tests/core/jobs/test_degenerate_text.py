"""Calibration text of hardly any variety is refused, or warned of where the job says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strucprune_core.calibration.degeneracy import TokenCounts, rank_is_low, refuse_rank
from strucprune_core.errors import InvalidText
from strucprune_core.spec import JobSpec
from tests.core.commands.calling import call, prune_command
from tests.core.jobs.spoiled import spoiled_all
from tests.core.jobs.tiny_job import run, tiny_spec
from tests.support.text import make_text

DEGENERATE = {
    "one letter": "a" * 400_000,
    "special tokens": "<|endoftext|>" * 20_000,
    "one word": "the " * 50_000,
    "blank lines": "\n" * 100_000,
}
LONG = {"samples": 8, "sequence_length": 32}


@pytest.fixture
def degenerate(tmp_path: Path) -> Path:
    path = tmp_path / "letters.txt"
    path.write_text(DEGENERATE["one letter"])
    return path


def refusal(spec: JobSpec, root: Path) -> InvalidText:
    with pytest.raises(InvalidText) as caught:
        run(spec, root)
    assert caught.value.remedy
    return caught.value


def finished(root: Path) -> set[str]:
    return {path.parent.name for path in (root / "workspace/units").glob("*/manifest.json")}


@pytest.mark.parametrize("name", DEGENERATE)
def test_it_is_refused_before_any_work(tiny_model: Path, tmp_path: Path, name: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text(DEGENERATE[name])
    spec = tiny_spec(tiny_model, text, tmp_path / "out", evaluation=None, calibration=LONG)
    error = refusal(spec, tmp_path)
    assert (error.field, error.phase) == ("calibration.uri", "inspecting")
    assert "distinct tokens in 256" in error.message
    assert "allow_degenerate" in str(error.remedy)
    assert finished(tmp_path) == {"model_check"}


def test_documents_are_looked_at_too(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text((json.dumps({"text": "no no no no"}) + "\n") * 2000)
    spec = tiny_spec(tiny_model, text, tmp_path / "out", evaluation=None)
    assert refusal(spec, tmp_path).field == "calibration.uri"


def test_one_may_go_on(tiny_model: Path, text_file: Path, tmp_path: Path, degenerate: Path) -> None:
    allowed = {**LONG, "allow_degenerate": True}
    easy = {"uri": str(text_file), "max_perplexity_ratio": 1e9}
    spec = tiny_spec(tiny_model, degenerate, tmp_path / "out", calibration=allowed, evaluation=easy)
    report = run(spec, tmp_path)
    assert report.calibration is not None
    assert report.calibration.tokens == 256
    assert report.calibration.distinct_tokens < 5
    assert report.calibration.least_effective_rank == 0.0
    by_tokens = [line for line in report.warnings if line.startswith("calibration.uri")]
    by_rank = [line for line in report.warnings if "few independent directions" in line]
    assert (len(by_tokens), len(by_rank)) == (1, 1)
    assert "4 of 4 layers" in by_rank[0]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "distinct tokens in 256" in page


def test_to_allow_it_does_not_begin_anew(tiny_model: Path, degenerate: Path) -> None:
    specs = [
        tiny_spec(tiny_model, degenerate, Path("out"), calibration={"allow_degenerate": allowed})
        for allowed in (False, True)
    ]
    assert specs[0].result_fingerprint() == specs[1].result_fingerprint()


def test_an_evaluation_text_is_warned_of(
    tiny_model: Path, text_file: Path, tmp_path: Path, degenerate: Path
) -> None:
    judged = {"uri": str(degenerate), "max_perplexity_ratio": 1e9}
    report = run(tiny_spec(tiny_model, text_file, tmp_path / "out", evaluation=judged), tmp_path)
    (warning,) = report.warnings
    assert warning.startswith("evaluation.uri: the text has hardly any variety")


def test_tokens_that_differ_in_name_only(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    """Embeddings that were never trained are all the same: only activations show it."""
    model = spoiled_all(tiny_model, tmp_path / "model", "model.embed_tokens.weight", 0.25)
    spec = tiny_spec(model, text_file, tmp_path / "out", calibration=LONG)
    error = refusal(spec, tmp_path)
    assert (error.field, error.phase, error.layer) == ("calibration.uri", "calibrating", 0)
    assert "effective rank 0.0" in error.message
    assert not any(unit.startswith("capture") for unit in finished(tmp_path))


@pytest.mark.parametrize("shape", [(2, 8), (4, 16), (8, 32), (32, 64)], ids=str)
def test_ordinary_text_is_not_meant(
    tiny_model: Path, text_file: Path, tmp_path: Path, shape: tuple[int, int]
) -> None:
    text = {"samples": shape[0], "sequence_length": shape[1]}
    report = run(tiny_spec(tiny_model, text_file, tmp_path / "out", calibration=text), tmp_path)
    assert not [line for line in report.warnings if "variety" in line]


@pytest.mark.parametrize(
    ("tokens", "distinct", "vocabulary", "refused", "warned"),
    [
        (16384, 15, 49152, True, True),
        (16384, 16, 49152, False, True),
        (16384, 63, 49152, False, True),
        (16384, 64, 49152, False, False),
        (16, 2, 49152, False, False),
        (16, 1, 49152, True, False),
        (16384, 4, 8, False, False),  # Of four nucleotides.
        (16384, 1, 49152, True, True),
    ],
)
def test_limits(tokens: int, distinct: int, vocabulary: int, refused: bool, warned: bool) -> None:
    counts = TokenCounts(tokens, distinct)
    assert counts.are_too_few(vocabulary) is refused
    assert counts.are_few(vocabulary) is warned


def test_a_layer_without_any_energy_says_nothing_of_the_text() -> None:
    refuse_rank(None, 1000, "calibration.uri")
    refuse_rank(1.0, 1, "calibration.uri")  # A site of one column.
    assert not rank_is_low(None, 1000, 1000)
    assert rank_is_low(5.0, 1000, 1000)
    assert not rank_is_low(5.0, 50, 1000)
    with pytest.raises(InvalidText, match=r"effective rank 0\.0"):
        refuse_rank(0.0, 1, "calibration.uri")


def test_counts() -> None:
    assert TokenCounts.of(np.array([[1, 1, 2], [2, 2, 7]], dtype=np.int32)) == TokenCounts(6, 3)


def test_the_command(tiny_model: Path, tmp_path: Path, degenerate: Path) -> None:
    command = prune_command(tiny_model, degenerate, tmp_path / "out")
    refused = call(*command)
    assert refused.exit_code == 1
    assert "invalid_text" in refused.stderr
    shown = call(*command, "--allow-degenerate")
    assert shown.exit_code == 0
    assert "warning calibration.uri: the text has hardly any variety" in " ".join(
        shown.stderr.split()
    )


def test_text_that_is_not_read_is_said(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strucprune_core.calibration import text as plain

    monkeypatch.setattr(plain, "CALIBRATION_TEXT_BYTES", 20_000)
    for name, content in {
        "long.txt": make_text(),
        "long.jsonl": "\n".join(json.dumps({"text": p}) for p in make_text().split("\n\n")),
    }.items():
        root = tmp_path / name
        root.mkdir()
        (root / name).write_text(content)
        changes: dict[str, Any] = {"evaluation": None}
        report = run(tiny_spec(tiny_model, root / name, root / "out", **changes), root)
        assert [line for line in report.warnings if "the rest was not read" in line]
