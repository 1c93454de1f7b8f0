"""Files and values of units: one name each, one type each, and a clear failure otherwise."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from strucprune_core.calibration.degeneracy import TokenCounts
from strucprune_core.errors import Stopped
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.method.site_statistics import SiteStatistics
from strucprune_core.models.blocks import Block
from strucprune_core.plan.graph import Unit, build_experts_graph, build_graph
from strucprune_core.run import artifacts, steps
from strucprune_core.run.artifacts import Artifacts, Capture, File, Price, PriceValues
from strucprune_core.run.context import Job
from strucprune_core.run.step_table import STEPS
from strucprune_core.run.unit_files import UnitFiles
from strucprune_core.run.workspace import Draft, LostFile, Workspace
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import StopOnceFinished, checkpoint_of, run
from tests.support.tiny_llama import make_tiny_llama

FILE_NAME = re.compile(r"\S*\.(npy|safetensors|gguf)")
PRICE = PriceValues((5, 7), 0.25, None, [1.0, 2.0], [0.0, 1e-310])
COUNTS = TokenCounts(64, 20)
LOSS = artifacts.BlockLoss(Block(2, "layers"), 192, 0.125)
# Values of every kind of unit that has some.
VALUES: dict[type[Artifacts], Any] = {
    artifacts.ModelCheck: artifacts.ModelCheckValues("x", 4, [0, 2], 1e-7, 1e-3),
    artifacts.Weights: artifacts.WeightsValues(29),
    artifacts.Search: artifacts.SearchValues(0.1053, 0.09),
    artifacts.Tokens: artifacts.TokensValues("ff", True, COUNTS),
    artifacts.EvaluationTokens: artifacts.EvaluationTokensValues("ff", COUNTS),
    artifacts.Capture: artifacts.CaptureValues(
        {"ffn": SiteStatistics(64, 96, 1.0, 0.5, None)},
        artifacts.RouteValues([7, 0], [0.5, 0.0], [0.25, 0.0], []),
    ),
    artifacts.Curve: artifacts.CurveValues({"ffn": "float32"}),
    artifacts.ExpertProbe: artifacts.ExpertProbeValues([(1, 0.5), (3, 1.25)]),
    artifacts.Route: artifacts.RouteValues([7, 0], [0.5, 0.0], [0.25, 0.0], [(1, 0.5)]),
    artifacts.Select: artifacts.SelectValues([[], [0, 2]], None, None, [1.0, 1.0], [0.0, 0.5]),
    artifacts.Probe: artifacts.ProbeValues([artifacts.OfKind(1, "ffn", 0.5)]),
    artifacts.Gradient: artifacts.GradientValues([artifacts.OfKind(1, "attention", 0.5)]),
    artifacts.Price: PRICE,
    artifacts.Trial: artifacts.TrialValues(0.125),
    artifacts.Review: artifacts.ProbeValues([]),
    artifacts.Allocate: artifacts.AllocateValues(**asdict(PRICE), round=2, kls=[0.5, 0.25]),
    artifacts.Solve: artifacts.SolveValues(
        {
            "ffn": artifacts.SolvedSite(None, 0.01, 0),
            "attention": artifacts.SolvedSite(
                0.5,
                0.01,
                1,
                artifacts.AdmmValues("converged", 3, 2, 1.0, 0.1, 0.1, 2.0, 1.0, 4, 0.3, 0.2, True),
            ),
        }
    ),
    artifacts.BlockProbe: artifacts.BlockProbeValues([LOSS]),
    artifacts.Drop: artifacts.DropValues(LOSS, []),
    artifacts.Refit: artifacts.RefitValues(True, 0.5, None),
    artifacts.Recover: artifacts.RecoverValues("accepted", 0.5, None),
    artifacts.Distill: artifacts.DistillValues([0.5, 0.25], False, 0.5, 0.25, "accepted"),
    artifacts.Repair: artifacts.RepairValues("accepted", 0.5, 0.25),
    artifacts.Divergence: artifacts.DivergenceValues(0.25),
    artifacts.Evaluate: artifacts.EvaluateValues(12.5),
    artifacts.Samples: artifacts.SamplesValues(
        [artifacts.SampleTokens([1, 2], [3], ended=True)], [{"prompt": "x", "same_tokens": 1}]
    ),
    artifacts.Tasks: artifacts.TasksValues("0.4.13", [{"task": "x", "metrics": []}], 3),
    artifacts.Speed: artifacts.SpeedValues(
        "transformers 5", "float32", "cpu", 2, 8, 4, [{"model": "dense"}], {"dense": 7}
    ),
    artifacts.Verify: artifacts.ReloadValues("x", 4, 1e-7, 1e-3),
    artifacts.Check: artifacts.ReloadValues("x", 4, 1e-7, 1e-3),
}


def kinds_of_artifacts() -> set[type[Artifacts]]:
    classes = (each for each in vars(artifacts).values() if isinstance(each, type))
    return {each for each in classes if issubclass(each, Artifacts) and "kind" in vars(each)}


def example(kind: type[Artifacts]) -> Artifacts:
    """A unit of a kind, its numbers all 3."""
    return kind(*(3 for _ in fields(kind)))


def every_unit() -> Iterator[Unit]:
    for energy in ("kl_probe", "gradient"):
        yield from build_graph(
            layers=3,
            shards=[[0, 1, 2]],
            energy=energy,
            evaluate=True,
            tasks=True,
            recover=True,
            rounds=2,
            exports=("gguf", "gguf_q8_0", "fp8", "block_configs"),
            export_shards={"fp8": [[0, 1, 2]], "block_configs": [[0, 1, 2]]},
            distill_steps=20,
            samples=True,
            speed=True,
        )
    yield from build_graph(
        layers=3,
        shards=[[0, 1, 2]],
        energy="forward",
        evaluate=True,
        blocks=2,
        sites=False,
        refit=True,
    )
    yield from build_graph(
        layers=3, shards=[[0, 1, 2]], energy="kl_probe", evaluate=True, experts=True
    )
    yield from build_experts_graph(
        layers=3, shards=[[]], energy="kl_probe", evaluate=True, repair=True
    )


def test_a_unit_is_named_by_its_kind_and_its_numbers() -> None:
    assert Capture(7).unit == "capture.7"
    assert artifacts.Trial(2, 17).unit == "trial.2.17"
    assert artifacts.Evaluate("dense").unit == "evaluate.dense"
    assert artifacts.EvaluationTokens().unit == "tokens.evaluation"


def test_a_file_is_named_by_its_kind_and_belongs_to_a_unit() -> None:
    assert Capture.grams == "grams.safetensors"
    assert Capture(7).grams == File("capture.7", "grams.safetensors")


def test_every_kind_of_unit_has_artifacts_and_a_step_in_the_file_of_its_name() -> None:
    kinds = {unit.kind for unit in every_unit()}
    assert kinds == STEPS.keys()
    named = {each.kind.partition(".")[0] for each in kinds_of_artifacts()}
    # Which are about several sizes of a job, not about one.
    assert named - kinds == {artifacts.Sizes.kind, artifacts.Search.kind}
    assert kinds <= named
    (folder,) = steps.__path__
    assert kinds == {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    for kind, step in STEPS.items():
        assert (step.__name__, step.__module__) == (kind, f"{steps.__name__}.{kind}")


def test_only_artifacts_name_files_of_units() -> None:
    core = Path(artifacts.__file__).parents[1]
    others = {*(core / "run").rglob("*.py"), core / "plan/graph.py"} - {Path(artifacts.__file__)}
    assert len(others) > 40
    for path in others:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not FILE_NAME.fullmatch(node.value), f"{path.name}: {node.value}"


def test_values_of_every_kind_come_back_from_json() -> None:
    valued = {kind for kind in kinds_of_artifacts() if issubclass(kind, artifacts.ValuedArtifacts)}
    assert valued == VALUES.keys()
    for kind, values in VALUES.items():
        unit = example(kind)
        assert isinstance(unit, artifacts.ValuedArtifacts)
        assert unit.read(json.loads(json.dumps(asdict(values)))) == values
        assert unit.read(asdict(values)) == values


def stored(tmp_path: Path, values: dict[str, Any]) -> tuple[Workspace, UnitFiles]:
    """A workspace in which `price.1` has left these values."""
    workspace = Workspace(LocalStore(tmp_path / "store"), tmp_path / "scratch", "job")
    with workspace.draft() as draft:
        draft.values |= values
        workspace.adopt(
            workspace.store(
                "price.1", draft, seconds=0.0, host_peak_bytes=0, device_peak_bytes=None
            )
        )
    return workspace, UnitFiles(workspace, torch.device("cpu"), Panels(), Transfers())


def test_values_are_read_as_they_are_after_the_unit_was_done_again(tmp_path: Path) -> None:
    workspace, units = stored(tmp_path, asdict(PRICE))
    assert units.values(Price(1)) == PRICE
    workspace.forget("price.1")
    stored(tmp_path, {**asdict(PRICE), "widths": [1, 2]})
    workspace.refresh()
    assert units.values(Price(1)).widths == (1, 2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"widths": [5, "many"]}, "widths.1: Input should be a valid integer"),
        ({"widths": None}, "widths: Input should be a valid tuple"),
        ({"energies": {"0": 1.0}}, "energies: Input should be a valid list"),
    ],
)
def test_values_of_another_version_make_their_unit_unfinished(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    workspace, units = stored(tmp_path, {**asdict(PRICE), **change})
    with pytest.raises(LostFile) as caught:
        units.values(Price(1))
    assert caught.value.unit == "price.1"
    assert f"the values of price.1 in the workspace {workspace.uri}" in caught.value.message
    assert problem in caught.value.message
    assert workspace.manifest("price.1") is None


def test_a_value_that_is_missing_is_named(tmp_path: Path) -> None:
    _, units = stored(tmp_path, {"widths": [5, 7]})
    with pytest.raises(LostFile, match="price: Field required"):
        units.values(Price(1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=3, intermediate=96)


def test_a_job_computes_again_what_another_version_has_left(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = STEPS["capture"]

    def as_before(job: Job, unit: Unit, draft: Draft) -> None:
        capture(job, unit, draft)
        if unit.name == "capture.1":
            draft.values = {"statistics": draft.values.pop("sites")}

    with monkeypatch.context() as other_version:
        other_version.setitem(STEPS, "capture", as_before)
        with pytest.raises(Stopped):
            run(spec, tmp_path, stop=StopOnceFinished(tmp_path, "capture.1"))
    run(spec, tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected
