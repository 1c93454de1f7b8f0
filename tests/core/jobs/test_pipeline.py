from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from strucprune_core.errors import (
    InvalidSpec,
    NumericalFailure,
    OutOfMemory,
    OutputNotEmpty,
    QualityCollapsed,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.models.devices import choose_device
from strucprune_core.report.document import Report
from strucprune_core.run.progress import Phase, Progress
from strucprune_core.run.step_table import STEPS
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import Store
from tests.core.jobs.tiny_job import FlakyStore, checkpoint_of, files_of, run, tiny_spec
from tests.support.known import known
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, text_file: Path
) -> tuple[Path, Report, list[Progress]]:
    """A finished job: its directory (output in `out`), report, and progress."""
    root = tmp_path_factory.mktemp("finished")
    seen: list[Progress] = []
    spec = tiny_spec(tiny_model, text_file, root / "out", labels={"team": "tests"})
    return root, run(spec, root, progress=seen.append), seen


def stored_shapes(directory: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def parameters(directory: Path) -> int:
    return sum(int(torch.tensor(shape).prod()) for shape in stored_shapes(directory).values())


def test_the_report_is_what_the_files_hold(
    finished: tuple[Path, Report, list[Progress]], tiny_model: Path
) -> None:
    root, report, _ = finished
    out = root / "out"
    assert report == Report.model_validate_json((out / "report.json").read_bytes())
    removed = parameters(tiny_model) - parameters(out)
    assert report.sparsity.parameters_removed == removed
    assert report.before.parameters == parameters(tiny_model)
    assert report.after.parameters == parameters(out)
    assert report.after.bytes == (out / "model.safetensors").stat().st_size
    assert report.before.bytes == (tiny_model / "model.safetensors").stat().st_size
    widths = [layer.width_after for layer in report.layers]
    shapes = stored_shapes(out)
    for index, width in enumerate(widths):
        prefix = f"model.layers.{index}.mlp"
        assert shapes[f"{prefix}.gate_proj.weight"] == [width, 64]
        assert shapes[f"{prefix}.up_proj.weight"] == [width, 64]
        assert shapes[f"{prefix}.down_proj.weight"] == [64, width]
    config = json.loads((out / "config.json").read_bytes())
    assert [layer["ffn"] for layer in config["strucprune"]["layers"]] == [[w] for w in widths]


def test_the_report_adds_up(finished: tuple[Path, Report, list[Progress]]) -> None:
    _, report, _ = finished
    removed = sum(layer.width_before - layer.width_after for layer in report.layers)
    assert report.sparsity.requested == 0.3
    assert (
        report.sparsity.channels_removed
        == removed
        == report.before.ffn_channels - (report.after.ffn_channels)
    )
    assert report.sparsity.reached == pytest.approx(removed / (4 * 192))
    assert 0.3 <= report.sparsity.reached < 0.3 + 1 / 192
    assert report.sparsity.parameters_removed == removed * 3 * 64
    assert [layer.index for layer in report.layers] == [0, 1, 2, 3]
    for layer in report.layers:
        assert layer.width_before == 192
        assert 20 <= layer.width_after <= 192
        assert layer.energy > 0
        assert layer.predicted_damage >= 0
        assert 0 <= known(layer.reconstruction_error) < 1
        assert layer.damping == pytest.approx(3.0)  # few tokens: the rule's upper end
        assert layer.damping_retries == 0
    assert report.warnings == []
    assert report.perplexity is not None
    assert report.perplexity.ratio == pytest.approx(
        report.perplexity.after / report.perplexity.before
    )
    assert report.perplexity.tokens == 2 * 31
    assert report.verification.max_abs_logit_difference <= report.verification.tolerance
    assert report.memory.host_peak_bytes.measured
    assert {phase.name for phase in report.phases} <= {phase.value for phase in Phase}
    assert report.spec["labels"] == {"team": "tests"}


def test_layers_whose_channels_matter_more_keep_more(
    finished: tuple[Path, Report, list[Progress]],
) -> None:
    # `threshold`: removing one more channel would cost about the same in every layer.
    _, report, _ = finished
    assert len({layer.width_after for layer in report.layers}) > 1


def test_every_file_is_listed_with_its_digest(
    finished: tuple[Path, Report, list[Progress]],
) -> None:
    root, report, _ = finished
    files = files_of(root / "out")
    manifest = json.loads(files.pop("strucprune.json"))
    assert manifest["format_version"] == 1
    listed = {entry["name"]: (entry["bytes"], entry["sha256"]) for entry in manifest["files"]}
    assert listed == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    in_report = {entry.name for entry in report.files}
    assert in_report == set(files) - {"report.json", "report.html"}
    assert "tokenizer.json" in in_report


def test_nothing_private_is_published(finished: tuple[Path, Report, list[Progress]]) -> None:
    root, _, _ = finished
    for data in checkpoint_of(root / "out").values():
        assert str(root).encode() not in data


def test_progress_only_grows_and_ends_at_one(
    finished: tuple[Path, Report, list[Progress]],
) -> None:
    _, _, seen = finished
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert all(fraction < 1.0 for fraction in fractions[:-1])
    assert {progress.phase for progress in seen} == set(Phase)
    assert all(0 <= progress.layers_done <= progress.layers_total for progress in seen)
    assert seen[-1].eta_seconds == 0.0
    assert all(progress.eta_seconds is None or progress.eta_seconds >= 0 for progress in seen)


def test_two_runs_give_the_same_bytes(
    finished: tuple[Path, Report, list[Progress]],
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
) -> None:
    root, report, _ = finished
    again = run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(root / "out")
    assert again.layers[0].energy == report.layers[0].energy
    assert again.perplexity is not None
    assert report.perplexity is not None
    assert again.perplexity.after == report.perplexity.after


def test_the_scratch_directory_is_left_without_drafts(
    finished: tuple[Path, Report, list[Progress]],
) -> None:
    root, _, _ = finished
    assert list((root / "scratch").glob("draft-*")) == []


def test_nothing_is_written_outside_the_scratch_directory(
    tiny_model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    run(
        tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"exports": ["block_configs"]}),
        tmp_path,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": None},
        {"pruning": {"layout": "uniform", "multiple_of": 16}},
        {"pruning": {"allocation": "uniform"}},
        {"pruning": {"damping": 0.05, "min_keep_fraction": 0.6}},
        {"pruning": {"sparsity": 0.01}},
        {"pruning": {"sparsity": 0.89}, "evaluation": {"max_perplexity_ratio": 1e6}},
        {"calibration": {"samples": 2, "sequence_length": 8}},
        {"calibration": {"samples": 40}, "runtime": {"micro_batch_tokens": 64}},
    ],
    ids=str,
)
def test_variants(
    tmp_path: Path, tiny_model: Path, text_file: Path, changes: dict[str, Any]
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", **changes)
    report = run(spec, tmp_path)
    widths = [layer.width_after for layer in report.layers]
    assert report.sparsity.reached >= spec.pruning.asked_sparsity - 1e-9
    assert min(widths) > spec.pruning.min_keep_fraction * 192 - 1
    assert all(width % spec.pruning.multiple_of == 0 for width in widths)
    assert parameters(tmp_path / "out") == report.after.parameters
    assert (report.perplexity is None) == (spec.evaluation is None)
    if spec.pruning.allocation == "uniform":
        assert len(set(widths)) == 1
        assert {layer.energy for layer in report.layers} == {1.0}


@pytest.mark.parametrize(
    ("tie", "dtype", "max_shard_size"),
    [(False, torch.float32, "5GB"), (True, torch.bfloat16, "100KB"), (False, torch.float16, "1MB")],
)
def test_models_of_other_forms(
    tmp_path: Path, text_file: Path, tie: bool, dtype: torch.dtype, max_shard_size: str
) -> None:
    model = make_tiny_llama(
        tmp_path / "model", tie=tie, dtype=dtype, max_shard_size=max_shard_size, layers=3
    )
    report = run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert parameters(tmp_path / "out") == report.after.parameters
    assert parameters(model) == report.before.parameters
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.get_tensor("model.layers.0.mlp.down_proj.weight").dtype == dtype


def test_several_shards(
    tmp_path: Path, tiny_model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strucprune_core.run.shards.MAX_SHARD_BYTES", 200_000)
    report = run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_bytes())
    assert set(index["weight_map"].values()) == set(shards)
    assert set(index["weight_map"]) == set(stored_shapes(tmp_path / "out"))
    assert parameters(tmp_path / "out") == report.after.parameters


def test_a_pruned_checkpoint_can_be_pruned_again(
    finished: tuple[Path, Report, list[Progress]], tmp_path: Path, text_file: Path
) -> None:
    root, first, _ = finished
    second = run(tiny_spec(root / "out", text_file, tmp_path / "out"), tmp_path)
    assert [layer.width_before for layer in second.layers] == [
        layer.width_after for layer in first.layers
    ]
    assert second.before.parameters == first.after.parameters
    assert second.sparsity.reached == pytest.approx(0.3, abs=0.01)
    assert parameters(tmp_path / "out") == second.after.parameters
    assert second.perplexity is not None
    assert first.perplexity is not None
    assert second.perplexity.before == pytest.approx(first.perplexity.after, rel=1e-5)


def test_a_uniform_checkpoint_can_be_pruned_again(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    uniform = {"layout": "uniform"}
    run(tiny_spec(tiny_model, text_file, tmp_path / "a", pruning=uniform), tmp_path / "1")
    second = run(
        tiny_spec(tmp_path / "a", text_file, tmp_path / "b", pruning=uniform), tmp_path / "2"
    )
    assert {layer.width_after for layer in second.layers} == {int(int(192 * 0.7) * 0.7)}


def test_a_layer_of_one_channel_stays(tmp_path: Path, text_file: Path) -> None:
    from tests.core.models.reference import random_llama
    from tests.support.tiny_llama import save_tokenizer

    model = random_llama(widths=[1, 40, 2], vocab_size=512)
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", text=text_file.read_text())
    report = run(tiny_spec(tmp_path / "model", text_file, tmp_path / "out"), tmp_path)
    assert report.layers[0].width_after == 1
    assert report.layers[2].width_after in (1, 2)


def test_collapsed_quality_publishes_nothing(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    spec = tiny_spec(
        tiny_model, text_file, tmp_path / "out", evaluation={"max_perplexity_ratio": 1.0000001}
    )
    with pytest.raises(QualityCollapsed, match="nothing was published") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "pruning.sparsity"
    assert caught.value.phase == "evaluating"
    assert files_of(tmp_path / "out") == {}
    with pytest.raises(QualityCollapsed):  # and again, without doing all of it again
        run(spec, tmp_path)
    assert files_of(tmp_path / "out") == {}


def test_an_output_that_holds_something_is_refused(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(OutputNotEmpty, match=r"precious\.txt") as caught:
        run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert caught.value.field == "output.uri_prefix"
    assert files_of(tmp_path / "out") == {"precious.txt": b"mine"}


def test_a_finished_job_is_not_done_twice_elsewhere(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out")
    first = run(spec, tmp_path)
    before = files_of(tmp_path / "out")
    assert run(spec, tmp_path) == first  # the same job: nothing left to do
    assert files_of(tmp_path / "out") == before
    with pytest.raises(OutputNotEmpty):  # another job
        run(spec, tmp_path / "other")
    assert files_of(tmp_path / "out") == before


class Opener:
    """Opens stores; the output's through a callback."""

    def __init__(self, output: Path, open_output: Any) -> None:
        self.output, self.open_output = str(output), open_output

    def __call__(self, uri: str) -> Store:
        store: Store = self.open_output() if uri == self.output else LocalStore(Path(uri))
        return store


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_publishing_interrupted_at_any_write_completes_later(
    finished: tuple[Path, Report, list[Progress]],
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    after: bool,
) -> None:
    out = tmp_path / "out"
    spec = tiny_spec(tiny_model, text_file, out)

    def attempt(fails_at: int) -> Report | StorageUnavailable:
        opener = Opener(out, lambda: FlakyStore(out, fails_at, after=after))
        try:
            return run(spec, tmp_path, open_store=opener)
        except StorageUnavailable as error:
            return error

    interruptions = 0
    while isinstance(report := attempt(interruptions + 1), StorageUnavailable):
        interruptions += 1
        assert report.field == "output.uri_prefix"
        assert after or not (out / "strucprune.json").exists()
    written = files_of(out)
    # A claim, the files of the checkpoint, report.html, the manifest.
    assert interruptions == len(written) == len(report.files) + 3
    assert checkpoint_of(out) == checkpoint_of(finished[0] / "out")
    assert report == Report.model_validate_json(written["report.json"])


def test_one_of_two_jobs_gets_the_output(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    # The other job publishes after ours has checked that the output is empty.
    out = tmp_path / "out"
    spec = tiny_spec(tiny_model, text_file, out)
    winner: list[Report] = []

    class Overtaken(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            winner.append(run(spec, tmp_path / "winner"))
            return super().put_if_absent(key, data)

    with pytest.raises(OutputNotEmpty, match="another job") as caught:
        run(spec, tmp_path / "loser", open_store=Opener(out, lambda: Overtaken(out)))
    assert caught.value.field == "output.uri_prefix"
    assert Report.model_validate_json((out / "report.json").read_bytes()) == winner[0]
    with pytest.raises(OutputNotEmpty):
        run(spec, tmp_path / "loser")
    assert run(spec, tmp_path / "winner") == winner[0]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(MemoryError("no"), OutOfMemory), (NumericalFailure("NaN"), NumericalFailure)],
    ids=["memory", "numerics"],
)
def test_failures_name_phase_and_layer(
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    expected: type[StrucPruneError],
) -> None:
    def fail(job: Any, unit: Any, draft: Any) -> None:
        if unit.index == 2:
            raise raised

    monkeypatch.setitem(STEPS, "curve", fail)
    with pytest.raises(expected) as caught:
        run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert (caught.value.phase, caught.value.layer) == ("allocating", 2)
    assert files_of(tmp_path / "out") == {}


def test_a_tokenizer_of_another_model_is_noticed(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    model = make_tiny_llama(tmp_path / "model", vocab=512, layers=1)
    tokenizer = json.loads((model / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: number + 5000 for token, number in vocabulary.items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StrucPruneError, match="vocabulary of 512") as caught:
        run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert caught.value.field == "model.uri"


def test_choose_device() -> None:
    assert choose_device("cpu").type == "cpu"
    available = torch.cuda.is_available()
    assert choose_device("auto").type == ("cuda" if available else "cpu")
    if not available:
        with pytest.raises(InvalidSpec, match="CUDA") as caught:
            choose_device("cuda")
        assert caught.value.field == "runtime.device"


def test_the_output_place_does_not_change_the_result(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "a")
    run(spec, tmp_path)
    # The same workspace with another output: everything is finished except publishing.
    run(tiny_spec(tiny_model, text_file, tmp_path / "b"), tmp_path)
    assert checkpoint_of(tmp_path / "a") == checkpoint_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("unit", "field"), [("capture", "runtime.micro_batch_tokens"), ("curve", None)]
)
def test_memory_that_runs_out_is_named(
    tiny_model: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unit: str,
    field: str | None,
) -> None:
    def allocate_too_much(*_: object) -> None:
        torch.empty(2**60)  # The CPU allocator's own refusal.

    monkeypatch.setitem(STEPS, unit, allocate_too_much)
    with pytest.raises(OutOfMemory, match=f"out of memory in {unit}") as caught:
        run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert caught.value.field == field
    assert caught.value.remedy
