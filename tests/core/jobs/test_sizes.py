"""Jobs of several sizes: measured once, each the same to the byte as the job of this size alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidSpec, QualityCollapsed, StrucPruneError
from strucprune_core.pipeline import prune, run_job
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import examine_job, inspect_model
from strucprune_core.report.document import Report
from strucprune_core.report.published import check_digests
from strucprune_core.report.sizes import SizesReport, pareto_front, read_report
from strucprune_core.run.layer_updates import LayerUpdate, merged
from strucprune_core.run.progress import FinishedUnit, Progress
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, checkpoint_of, files_of, run, tiny_spec
from tests.support.tiny_experts import save_tiny_experts
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=3, intermediate=96)


@dataclass
class Sized:
    """Runs jobs of several sizes in one workspace, and notes what was computed."""

    model: Path
    text: Path
    root: Path
    done: Counter[str] = field(default_factory=Counter)
    layers: list[LayerUpdate] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)

    def spec(self, output: str, sizes: list[float], **changes: Any) -> JobSpec:
        pruning = {"sparsity": None, "sizes": sizes, **changes.pop("pruning", {})}
        changes.setdefault("evaluation", EASY)
        output_folder = self.root / output
        return tiny_spec(self.model, self.text, output_folder, pruning=pruning, **changes)

    def run(self, spec: JobSpec) -> SizesReport:
        def note(unit: FinishedUnit) -> None:
            self.done[unit.name] += 1

        def watch(progress: Progress) -> None:
            self.fractions.append(progress.fraction)

        report = run_job(
            spec,
            workspace=LocalStore(self.root / "workspace"),
            scratch=self.root / "scratch",
            open_store=lambda uri: LocalStore(Path(uri)),
            finished=note,
            progress=watch,
            layers=self.layers.extend,
        )
        assert isinstance(report, SizesReport)
        return report


@pytest.fixture
def sized(model: Path, text_file: Path, tmp_path: Path) -> Sized:
    return Sized(model, text_file, tmp_path)


KINDS: list[dict[str, Any]] = [
    {},
    {"structures": ["ffn_channels", "kv_groups"], "exports": ["gguf"], "rounds": 2},
    {"structures": ["ffn_channels", "layers"], "recover": {"steps": 2}},
    {"structures": ["layers"]},
    {"layout": "uniform", "distill": {"steps": 2}},
]


@pytest.mark.parametrize("pruning", KINDS)
def test_each_size_is_the_job_of_this_size_alone(sized: Sized, pruning: dict[str, Any]) -> None:
    report = sized.run(sized.spec("out", [0.4, 0.25], pruning=pruning))
    assert [each.folder for each in report.sizes] == ["0.4", "0.25"]
    for sparsity in (0.4, 0.25):
        one = sized.root / f"alone-{sparsity}"
        changes = {"pruning": {"sparsity": sparsity, **pruning}, "evaluation": EASY}
        alone = run(tiny_spec(sized.model, sized.text, one / "out", **changes), one)
        folder = sized.root / "out" / str(sparsity)
        assert checkpoint_of(folder) == checkpoint_of(one / "out")
        same = read_report((folder / "report.json").read_bytes())
        assert same.job_fingerprint == alone.job_fingerprint
        assert check_digests(LocalStore(folder)) > 4
    assert max(sized.done.values()) == 1
    assert sized.fractions == sorted(sized.fractions)
    assert sized.fractions[-1] == 1.0


def test_experts_come_in_several_sizes(tmp_path: Path, text_file: Path) -> None:
    """What a layer is tried without depends on the sparsity, so each size has its own probes."""
    model = save_tiny_experts("qwen3_moe", tmp_path / "model")
    pruning = {"structures": ["experts"], "layout": "per_layer", "energy": "kl_probe"}
    sized = Sized(model, text_file, tmp_path)
    report = sized.run(sized.spec("out", [0.25, 0.5], pruning=pruning))
    for each in report.sizes:
        one = tmp_path / each.name
        changes = {"pruning": {**pruning, "sparsity": float(each.name)}, "evaluation": EASY}
        run(tiny_spec(model, text_file, one / "out", **changes), one)
        assert checkpoint_of(tmp_path / "out" / each.name) == checkpoint_of(one / "out")
    assert sized.done["route.0"] == sized.done["probe.0@0.25"] == sized.done["probe.0@0.5"] == 1


def test_what_sizes_share_is_done_once_and_kept_for_further_sizes(sized: Sized) -> None:
    sized.run(sized.spec("first", [0.3, 0.2]))
    first = set(sized.done)
    assert {"capture.0", "curve.2", "probe.0", "evaluate.dense", "solve.1@0.2"} <= first
    sized.done.clear()
    report = sized.run(sized.spec("second", [0.3, 0.5]))
    new = set(sized.done)
    assert {name for name in new if not name.endswith("@0.5")} == {"sizes@0.3+0.5", "publish"}
    assert [each.name for each in report.sizes] == ["0.3", "0.5"]
    folders = [sized.root / name / "0.3" for name in ("first", "second")]
    assert files_of(folders[0]) == files_of(folders[1])


def test_a_job_that_stops_goes_on(sized: Sized) -> None:
    """After any number of units: what is finished stays, and the result is the same."""
    whole = Sized(sized.model, sized.text, sized.root / "whole")
    whole.run(whole.spec("out", [0.3, 0.2]))
    spec, left = sized.spec("out", [0.3, 0.2]), sum(whole.done.values())

    class Stops(Exception):
        """Ends a run right after a unit."""

    def one_more(unit: FinishedUnit) -> None:
        sized.done[unit.name] += 1
        if unit.name != "publish" and sum(sized.done.values()) % 7 == 0:
            raise Stops

    for _ in range(left):
        try:
            run_job(
                spec,
                workspace=LocalStore(sized.root / "workspace"),
                scratch=sized.root / "scratch",
                open_store=lambda uri: LocalStore(Path(uri)),
                finished=one_more,
            )
            break
        except Stops:
            continue
    assert sized.done == whole.done
    for size in ("0.3", "0.2"):
        mine, theirs = (root / "out" / size for root in (sized.root, whole.root))
        assert checkpoint_of(mine) == checkpoint_of(theirs)


def ratios(sized: Sized) -> dict[str, float]:
    """Perplexity of each of three sizes, against the dense model's."""
    tried = Sized(sized.model, sized.text, sized.root / "tried")
    report = tried.run(tried.spec("out", [0.2, 0.5, 0.8]))
    return {each.name: each.perplexity_ratio or 0.0 for each in report.sizes}


@pytest.fixture
def worse(tiny_model: Path, text_file: Path, tmp_path: Path) -> Sized:
    """With a model that is worse without channels, as real ones are."""
    return Sized(tiny_model, text_file, tmp_path)


def test_a_size_that_collapses_does_not_take_the_others_with_it(worse: Sized) -> None:
    sized, found = worse, ratios(worse)
    best, *_, worst = sorted(found, key=lambda name: found[name])
    limit = {"max_perplexity_ratio": max(1.0001, (found[best] * found[worst]) ** 0.5)}
    report = sized.run(sized.spec("out", [float(worst), float(best)], evaluation=limit))
    bad, good = report.sizes
    assert (bad.folder, good.folder) == (None, best)
    assert bad.rejected is not None
    assert "more than" in bad.rejected
    assert any(worst in line and "not published" in line for line in report.warnings)
    folders = {path.name for path in (sized.root / "out").iterdir() if path.is_dir()}
    assert folders == {best}
    assert check_digests(LocalStore(sized.root / "out")) > 4
    assert "not published" in (sized.root / "out" / "report.html").read_text(encoding="utf-8")


def test_a_job_fails_if_all_sizes_collapse(worse: Sized) -> None:
    sized = worse
    found = {name: ratio for name, ratio in ratios(sized).items() if ratio > 1}
    limit = {"max_perplexity_ratio": 1 + (min(found.values()) - 1) / 2}
    spec = sized.spec("out", [float(name) for name in found], evaluation=limit)
    with pytest.raises(QualityCollapsed) as caught:
        sized.run(spec)
    assert caught.value.field == "pruning.sizes"
    assert all(name in caught.value.message for name in found)
    assert not (sized.root / "out").exists() or not files_of(sized.root / "out")


def test_layers_shown_while_it_runs_are_those_of_the_first_size(sized: Sized) -> None:
    sized.run(sized.spec("out", [0.5, 0.2]))
    shown = {update.index: update.width_after for update in merged(sized.layers)}
    report = read_report((sized.root / "out" / "0.5" / "report.json").read_bytes())
    assert not isinstance(report, SizesReport)
    assert shown == {layer.index: layer.width_after for layer in report.layers}


def test_the_output_says_which_folder_holds_what(sized: Sized) -> None:
    spec = sized.spec("out", [0.3, 0.2], evaluation=None).model_copy(update={"name": "Nightly"})
    report = sized.run(spec)
    card = (sized.root / "out" / "README.md").read_text(encoding="utf-8")
    assert "[0.3](0.3/)" in card
    assert "[0.2](0.2/)" in card
    page = (sized.root / "out" / "report.html").read_text(encoding="utf-8")
    assert "2 sizes" in page
    assert "StrucPrune report: Nightly" in page
    assert report.perplexity_before is None
    assert not any(each.best_of_its_size for each in report.sizes)
    read = read_report((sized.root / "out" / "report.json").read_bytes())
    assert read == report


def test_the_plain_function_refuses_several_sizes(sized: Sized, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "workspace")
    with pytest.raises(InvalidSpec) as caught:
        prune(sized.spec("out", [0.2]), workspace=store, scratch=tmp_path)
    assert caught.value.field == "pruning.sizes"


def issues(spec: JobSpec) -> list[StrucPruneError]:
    return examine_job(spec, lambda uri: LocalStore(Path(uri))).issues


def test_sizes_that_cannot_be_reached_are_named(sized: Sized) -> None:
    spec = sized.spec("out", [0.2, 0.99, 0.0001], pruning={"min_keep_fraction": 0.5})
    found = issues(spec)
    assert [(each.field, each.message.split(":")[0]) for each in found] == [
        ("pruning.sizes", "0.99"),
        ("pruning.sizes", "0.0001"),
    ]


def test_what_is_wrong_with_all_sizes_is_said_once(sized: Sized) -> None:
    spec = sized.spec("out", [0.2, 0.3], pruning={"structures": ["query_heads"], "recover": None})
    spec = spec.model_copy(
        update={"calibration": spec.calibration.model_copy(update={"sequence_length": 100_000})}
    )
    fields = [each.field for each in issues(spec)]
    assert len(fields) == len(set(fields))


def test_an_estimate_counts_what_is_shared_once(sized: Sized) -> None:
    facts = inspect_model(LocalStore(sized.model))
    several = estimate_job(sized.spec("out", [0.2, 0.4]), facts)
    alone = {
        size: estimate_job(
            tiny_spec(sized.model, sized.text, sized.root, pruning={"sparsity": float(size)}), facts
        )
        for size in ("0.2", "0.4")
    }
    assert {*several.sizes} == {*alone}
    for size, one in alone.items():
        assert several.sizes[size].bytes_after == one.bytes_after
        assert several.sizes[size].parameters_after == one.parameters_after
    first, second = alone.values()
    assert several.flops["calibration"] == first.flops["calibration"]
    assert several.flops["solves"] == first.flops["solves"] + second.flops["solves"]
    assert first.bytes_read < several.bytes_read < first.bytes_read + second.bytes_read
    most = first.workspace_bytes + second.workspace_bytes
    assert first.workspace_bytes < several.workspace_bytes < most


@pytest.mark.parametrize(
    ("sizes", "front"),
    [
        ([(3, 1.0), (2, 2.0), (1, 3.0)], [True, True, True]),
        ([(3, 2.0), (2, 2.0), (1, 3.0)], [False, True, True]),
        ([(2, 2.0), (2, 2.0)], [True, True]),
        ([(1, None), (2, 2.0)], [False, True]),
    ],
)
def test_the_pareto_front(sizes: list[tuple[int, float | None]], front: list[bool]) -> None:
    assert pareto_front(sizes) == front


def test_the_report_on_all_sizes_shows_what_was_measured_of_each(sized: Sized) -> None:
    measured = {
        **EASY,
        "samples": True,
        "sample_tokens": 4,
        "speed": True,
        "tasks": ["everyday"],
        "task_files": "embedded/tasks",
        "limit": 8,
    }
    report = sized.run(sized.spec("out", [0.3, 0.6], evaluation=measured))
    for each in report.sizes:
        own = read_report((sized.root / "out" / each.name / "report.json").read_bytes())
        assert isinstance(own, Report)
        assert each.speed is not None
        assert (each.tasks, each.speed, each.samples) == (own.tasks, own.speed, own.samples)
        assert len(each.samples) > 1
    page = (sized.root / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("Speed over the checkpoint", "everyday", "Prompt 2", "tokens/s"):
        assert words in page
