"""Jobs that look for the most sparsity that keeps perplexity, on a tiny model that has learned."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, LlamaForCausalLM

from strucprune_core.errors import QualityCollapsed
from strucprune_core.pipeline import prune
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_job
from strucprune_core.report.document import Report
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import checkpoint_of, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

RATIO = 1.3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, which a model can learn."""
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    lines = [f"{a} and {b} make {a + b}." for a in range(30) for b in range(30)]
    path.write_text(" ".join(lines[n * 397 % len(lines)] for n in range(len(lines))))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A tiny model that was trained on the text: one with random weights has nothing to lose."""
    directory = make_tiny_llama(
        tmp_path_factory.mktemp("model"), layers=3, intermediate=96, text=text.read_text()
    )
    net = LlamaForCausalLM.from_pretrained(directory)
    ids = AutoTokenizer.from_pretrained(directory)(text.read_text(), return_tensors="pt").input_ids
    windows = ids[0, : ids.shape[1] // 32 * 32].view(-1, 32)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(150):
        batch = windows[torch.randint(len(windows), (16,))]
        loss = net(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.save_pretrained(directory)
    return directory


def spec_of(model: Path, text: Path, output: Path, **changes: Any) -> JobSpec:
    target = {"max_perplexity_ratio": RATIO, **changes.pop("target", {})}
    if changes.get("evaluation", {}) is not None:
        changes["evaluation"] = {"sequences": 32, **changes.get("evaluation", {})}
    pruning = {"sparsity": None, "target": target, **changes.pop("pruning", {})}
    return tiny_spec(model, text, output, pruning=pruning, **changes)


KINDS: list[dict[str, Any]] = [
    {},
    {"structures": ["ffn_channels", "kv_groups"], "exports": ["gguf"], "rounds": 2},
    {"layout": "uniform", "energy": "forward"},
    {"recover": {"steps": 2}},
    {"distill": {"steps": 2}},
]


@pytest.mark.parametrize("pruning", KINDS, ids=lambda kind: json.dumps(kind))
def test_the_result_is_that_of_the_sparsity_found(
    model: Path, text: Path, tmp_path: Path, pruning: dict[str, Any]
) -> None:
    report = run(spec_of(model, text, tmp_path / "out", pruning=pruning), tmp_path)
    assert report.perplexity is not None
    assert report.search is not None
    assert report.perplexity.ratio <= RATIO
    tried = {each.sparsity: each.perplexity_ratio for each in report.search.tries}
    found = report.spec["pruning"]["sparsity"]
    assert tried[found] == pytest.approx(report.perplexity.ratio, rel=1e-12)
    kept = [s for s, ratio in tried.items() if ratio is not None and ratio <= RATIO]
    assert found == max(kept)
    alone = tiny_spec(
        model,
        text,
        tmp_path / "alone",
        pruning={"sparsity": found, **pruning},
        evaluation={"sequences": 32},
    )
    run(alone, tmp_path / "w2")
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(tmp_path / "alone")


def test_it_comes_close(model: Path, text: Path, tmp_path: Path) -> None:
    spec = spec_of(model, text, tmp_path / "out", target={"tries": 5})
    report = run(spec, tmp_path)
    assert report.perplexity is not None
    assert math.log(report.perplexity.ratio) >= 0.8 * math.log(RATIO)


def test_it_stops_anywhere_and_goes_on(model: Path, text: Path, tmp_path: Path) -> None:
    run(spec_of(model, text, tmp_path / "whole"), tmp_path / "w1")
    spec, done = spec_of(model, text, tmp_path / "out"), Counter[str]()

    class Stops(Exception):
        """Ends a run right after a unit."""

    def one_more(unit: FinishedUnit) -> None:
        done[unit.name] += 1
        if unit.name != "publish" and sum(done.values()) % 5 == 0:
            raise Stops

    def attempt() -> Report | None:
        try:
            return prune(
                spec,
                workspace=LocalStore(tmp_path / "w2"),
                scratch=tmp_path / "scratch",
                open_store=lambda uri: LocalStore(Path(uri)),
                finished=one_more,
            )
        except Stops:
            return None

    assert any(attempt() is not None for _ in range(100))
    assert set(done.values()) == {1}
    assert {"search.1", "search.4", "evaluate.pruned@try3", "evaluate.pruned"} <= set(done)
    assert "verify@try1" not in done
    assert checkpoint_of(tmp_path / "whole") == checkpoint_of(tmp_path / "out")


def test_another_evaluation_text_gives_another_search(
    model: Path, text: Path, tmp_path: Path
) -> None:
    """What follows from the sparsity follows from the text that it was found on."""
    spec = spec_of(model, text, tmp_path / "out")
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text(text.read_text())
    spec = spec_of(model, text, tmp_path / "out", evaluation={"uri": str(evaluation)})
    first = run(spec, tmp_path)
    evaluation.write_text(text.read_text()[5000:])
    again = spec_of(model, text, tmp_path / "again", evaluation={"uri": str(evaluation)})
    second = run(again, tmp_path)
    fresh = run(
        spec_of(model, text, tmp_path / "fresh", evaluation={"uri": str(evaluation)}),
        tmp_path / "w2",
    )
    assert checkpoint_of(tmp_path / "again") == checkpoint_of(tmp_path / "fresh")
    assert second.search == fresh.search != first.search


def test_what_no_try_keeps_is_not_published(model: Path, text: Path, tmp_path: Path) -> None:
    target, coarse = {"max_perplexity_ratio": 1.0001, "tries": 2}, {"multiple_of": 48}
    spec = spec_of(model, text, tmp_path / "out", target=target, pruning=coarse)
    with pytest.raises(QualityCollapsed, match="nothing was published") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "pruning.target.max_perplexity_ratio"
    assert caught.value.remedy is not None
    assert "The least was 1." in caught.value.remedy
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation": None}, "Add evaluation.uri"),
        ({"target": {"max_perplexity_ratio": 40.0}}, "raise evaluation.max_perplexity_ratio"),
        ({"pruning": {"structures": ["layers"]}}, "FFN channels and heads"),
        ({"pruning": {"structures": ["ffn_channels", "kv_groups"], "layout": "uniform"}}, "heads"),
        ({"target": {"parameters": 10**6}}, "exactly one"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec_of(Path("m"), Path("t"), Path("o"), **changes)


def test_an_estimate_counts_the_tries(model: Path, text: Path, tmp_path: Path) -> None:
    one = tiny_spec(model, text, tmp_path / "out", evaluation={"sequences": 32})
    found = [
        inspect_job(spec, lambda uri: LocalStore(Path(uri)))
        for spec in (spec_of(model, text, tmp_path / "out"), one)
    ]
    several, alone = (estimate_job(each.spec, each.model) for each in found)
    assert several.bytes_read > alone.bytes_read
    assert several.flops["solves"] == 4 * alone.flops["solves"]
    assert several.flops["curves"] == alone.flops["curves"]
    (warning,) = (each for each in several.warnings if "max_perplexity_ratio" in each)
    assert "found while the job runs, in 3 tries" in warning


def test_limits_bound_the_search(model: Path, text: Path, tmp_path: Path) -> None:
    """A sparsity that the model's limits do not allow is not tried."""
    pruning = {"max_layer_sparsity": 0.1}
    report = run(spec_of(model, text, tmp_path / "out", pruning=pruning), tmp_path)
    assert report.search is not None
    assert all(each.sparsity <= 10 / 96 for each in report.search.tries)
