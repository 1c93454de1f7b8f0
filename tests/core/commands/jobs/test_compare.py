"""Results of jobs side by side."""

from __future__ import annotations

import csv
import io
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.commands.jobs import compare as module
from strucprune_core.commands.jobs.compared import Result, perplexities_compare, results_of
from tests.core.commands.calling import call
from tests.support.reports import make_report

FIRST, SECOND = "job_" + "a" * 32, "job_" + "b" * 32
SPEC: dict[str, Any] = {
    "pruning": {"structures": ["ffn_channels"]},
    "evaluation": {"uri": "e.txt", "sequences": 8, "sequence_length": 64},
}


def report(**changes: Any) -> dict[str, Any]:
    made = make_report(2).model_dump(mode="json")
    return {**made, "spec": SPEC, "of_a_newer_service": 1, **changes}


def report_on_sizes() -> dict[str, Any]:
    made = report()
    size = {
        "name": "0.2",
        "folder": "0.2",
        "rejected": None,
        "sparsity": made["sparsity"],
        "after": made["after"],
        "perplexity": 30.0,
        "perplexity_ratio": 1.5,
        "task_retention": 0.91,
    }
    sizes = [size, {**size, "name": "0.9", "folder": None, "rejected": "It collapsed."}]
    kept = {name: made[name] for name in ("model", "spec", "before", "phases")}
    return {**kept, "perplexity_before": 20.0, "sizes": sizes}


def test_a_result() -> None:
    made = report()
    (found,) = results_of(FIRST, made)
    assert (found.job, found.size, found.structures) == (FIRST, "", "ffn_channels")
    assert found.parameters_after == made["after"]["parameters"]
    assert found.perplexity_after == made["perplexity"]["after"]
    assert found.perplexity_before == made["perplexity"]["before"]
    assert found.evaluation == "e.txt 8 x 64"
    assert found.seconds == pytest.approx(sum(each["seconds"] for each in made["phases"]))


def test_only_published_sizes() -> None:
    (found,) = results_of(SECOND, report_on_sizes())
    assert (found.size, found.perplexity_after, found.perplexity_before) == ("0.2", 30.0, 20.0)
    assert found.task_retention == 0.91


def test_a_job_without_evaluation() -> None:
    (found,) = results_of(FIRST, report(perplexity=None, spec={**SPEC, "evaluation": None}))
    assert (found.perplexity_after, found.perplexity_ratio, found.evaluation) == (None, None, "")


def test_what_perplexities_can_be_compared() -> None:
    (one,), (other,) = results_of(FIRST, report()), results_of(SECOND, report_on_sizes())
    assert perplexities_compare([one, other])  # The digest of a text is not in every report.
    changed = report()
    changed["model"]["digest"] = "another"
    assert not perplexities_compare([one, *results_of(SECOND, changed)])
    changed = report()
    changed["perplexity"]["text_sha256"] = "another"
    assert not perplexities_compare([one, *results_of(SECOND, changed)])
    windows = {**SPEC, "evaluation": {**SPEC["evaluation"], "sequences": 9}}
    assert not perplexities_compare([one, *results_of(SECOND, report(spec=windows))])
    assert perplexities_compare([one, *results_of(SECOND, report(spec=windows, perplexity=None))])


class Client:
    """A service with two jobs."""

    def find(self, beginning: str) -> str:
        return FIRST if FIRST.startswith(beginning) else SECOND

    def report(self, job: str) -> dict[str, Any]:
        return report() if job == FIRST else report_on_sizes()


@pytest.fixture(autouse=True)
def _service(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connect(url: str | None) -> Any:
        yield Client()

    monkeypatch.setattr(module, "connect", connect)


def test_a_table_for_people() -> None:
    done = call("jobs", "compare", "job_a", "job_b", FIRST)
    assert done.exit_code == 0, done.output
    heading, one, other = (" ".join(line.split()) for line in done.stdout.splitlines())
    names = "job size model removed parameters checkpoint perplexity ratio tasks kept time"
    assert heading == names  # No speed was measured.
    assert one.startswith(FIRST)
    assert other.startswith(f"{SECOND} 0.2 ")
    assert " 30.00 1.500 91.0% " in other


def test_csv_has_exact_numbers(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    done = call("jobs", "compare", "job_a", "job_b", "--csv", file)
    assert done.exit_code == 0, done.output
    assert "2 results in" in done.stderr
    rows = list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    expected = [*results_of(FIRST, report()), *results_of(SECOND, report_on_sizes())]
    assert len(rows) == 2
    for row, result in zip(rows, expected, strict=True):
        values = result.as_dict()
        assert row == {name: "" if each is None else str(each) for name, each in values.items()}
    assert file.read_text() == call("jobs", "compare", "job_a", "job_b", "--csv", "-").stdout


def test_nothing_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report_on_sizes()
    of_none = {**made, "sizes": made["sizes"][1:]}
    monkeypatch.setattr(Client, "report", lambda _, job: of_none)
    done = call("jobs", "compare", "job_b")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "None of these jobs has published a result." in done.stderr


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = call("jobs", "compare", "job_a", "--csv", tmp_path / "no/table.csv")
    assert done.exit_code == 2
    assert "--csv: cannot write" in done.stderr


def test_a_warning_if_perplexities_do_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(results: list[Result]) -> bool:
        return False

    monkeypatch.setattr(module, "perplexities_compare", differ)
    assert "not of one model on one text" in call("jobs", "compare", "job_a", "job_b").stderr
