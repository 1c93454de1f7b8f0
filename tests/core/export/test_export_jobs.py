"""Whole jobs with exports: what is published, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from strucprune_core.commands import figures
from strucprune_core.commands.main import app
from strucprune_core.errors import InvalidCheckpoint, Stopped
from strucprune_core.evaluation.standalone import verify_checkpoint
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.memory.host import host_terms
from strucprune_core.report.html import render_html
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import StopAt, checkpoint_of, run, tiny_spec, without_card
from tests.support.tiny_llama import make_tiny_llama

BOTH = {"exports": ["gguf", "block_configs"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=2, intermediate=96)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path, text_file: Path) -> Path:
    root = tmp_path_factory.mktemp("done")
    run(tiny_spec(model, text_file, root / "out", pruning=BOTH), root)
    return root / "out"


def test_exports_lie_beside_the_checkpoint(
    tmp_path: Path, model: Path, text_file: Path, done: Path
) -> None:
    run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    plain, found = (without_card(checkpoint_of(each)) for each in (tmp_path / "out", done))
    assert {name: data for name, data in found.items() if "/" not in name} == plain
    assert {name for name in found if "/" in name} == {
        "gguf/model.gguf",
        "block_configs/config.json",
        "block_configs/configuration_strucprune.py",
        "block_configs/generation_config.json",
        "block_configs/model.safetensors",
        "block_configs/tokenizer.json",
        "block_configs/tokenizer_config.json",
    }


def test_they_are_reported_and_verified(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    for export in report["exports"]:
        files = [path for path in (done / export["folder"]).iterdir() if path.is_file()]
        assert export["bytes"] == sum(path.stat().st_size for path in files)
        check = export["verification"]
        assert check["tokens"] == 64
        assert check["max_abs_logit_difference"] <= check["tolerance"]
        assert f"Export {export['name']}" in (done / "report.html").read_text()
    assert [export["name"] for export in report["exports"]] == ["gguf", "block_configs"]
    listed = {
        entry["name"] for entry in json.loads((done / "strucprune.json").read_text())["files"]
    }
    on_disk = {str(path.relative_to(done)) for path in done.rglob("*") if path.is_file()}
    assert listed == on_disk - {"strucprune.json"}
    assert verify_checkpoint(str(done))["files"] == len(listed)


def test_a_damaged_export_is_noticed(tmp_path: Path, model: Path, text_file: Path) -> None:
    run(tiny_spec(model, text_file, tmp_path / "out", pruning=BOTH), tmp_path)
    with (tmp_path / "out/gguf/model.gguf").open("r+b") as file:
        file.seek(-40, 2)
        file.write(b"\x55")
    with pytest.raises(InvalidCheckpoint, match=r"gguf/model\.gguf"):
        verify_checkpoint(str(tmp_path / "out"))


def test_stopped_again_and_again(tmp_path: Path, model: Path, text_file: Path, done: Path) -> None:
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=BOTH)
    stops = 0
    for _ in range(100):
        try:
            run(spec, tmp_path, stop=StopAt(25))
            break
        except Stopped:
            stops += 1
            if (tmp_path / "out").exists():  # publishing starts anew each time
                run(spec, tmp_path)
                break
    assert stops > 3
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(done)


def test_a_lost_export_is_written_again(
    tmp_path: Path, model: Path, text_file: Path, done: Path
) -> None:
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=BOTH)
    run(spec, tmp_path)
    expected = checkpoint_of(tmp_path / "out")
    assert expected == checkpoint_of(done)
    for path in (tmp_path / "workspace/units").rglob("model.gguf"):
        path.unlink()
    again = tiny_spec(model, text_file, tmp_path / "again", pruning=BOTH)
    run(again, tmp_path)
    assert checkpoint_of(tmp_path / "again") == expected


def test_the_estimate_knows_them(model: Path, text_file: Path, done: Path) -> None:
    facts = inspect_model(LocalStore(model))
    spec = tiny_spec(model, text_file, Path("out"), pruning=BOTH)
    estimate = estimate_job(spec, facts)
    plain = estimate_job(tiny_spec(model, text_file, Path("out")), facts)
    assert plain.export_bytes == {}
    sizes = {name: (done / name).stat().st_size for name in ("gguf/model.gguf",)}
    # The vocabulary, which is most of this tiny file, is not counted.
    assert 0.5 * sizes["gguf/model.gguf"] < estimate.export_bytes["gguf"] < sizes["gguf/model.gguf"]
    weights = (done / "block_configs/model.safetensors").stat().st_size
    assert estimate.export_bytes["block_configs"] == pytest.approx(weights, rel=0.02)
    more = sum(estimate.export_bytes.values())
    assert estimate.workspace_bytes == plain.workspace_bytes + more
    assert host_terms(spec, facts.config)["exports"] > 512 * 64 * 4


def test_the_memory_of_an_export_is_that_of_the_largest_tensor(
    model: Path, text_file: Path
) -> None:
    spec = tiny_spec(model, text_file, Path("out"), pruning={"exports": ["block_configs"]})
    config = inspect_model(LocalStore(model)).config
    wide = tuple(replace(block, ffn_widths=(4096,)) for block in config.blocks)
    vocabulary, matrix = config.vocab_size * config.hidden_size, 4096 * config.hidden_size
    terms = [host_terms(spec, each)["exports"] for each in (config, replace(config, blocks=wide))]
    assert terms[1] - terms[0] == 8 * (matrix - vocabulary) > 0


def test_the_page_of_a_report_without_exports(tmp_path: Path, model: Path, text_file: Path) -> None:
    report = run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert report.exports == []
    assert "Export " not in render_html(report)


def command(model: Path, text: Path, output: Path, *more: str) -> Result:
    fixed = ["prune", model, "--output", output, "--sparsity", "0.3", "--calibration", text]
    sizes = ["--samples", "8", "--sequence-length", "32"]
    return CliRunner().invoke(app, [*map(str, fixed), *sizes, *more])


def test_the_command(tmp_path: Path, model: Path, text_file: Path, done: Path) -> None:
    both = ("--export", "gguf", "--export", "block_configs")
    result = command(model, text_file, tmp_path / "out", *both)
    assert result.exit_code == 0, result.output
    bytes_written = (tmp_path / "out/gguf/model.gguf").stat().st_size
    shown = " ".join(result.output.split())
    assert f"export gguf {figures.size(bytes_written)} in" in shown
    # The command evaluates nothing, which the card says.
    assert without_card(checkpoint_of(tmp_path / "out")) == without_card(checkpoint_of(done))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (["--export", "onnx"], "pruning.exports.0"),
        (["--export", "gguf", "--export", "gguf"], "pruning"),
        (["--export", "block_configs", "--structure", "kv_groups"], "pruning.exports"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, model: Path, text_file: Path, more: list[str], field: str
) -> None:
    result = command(model, text_file, tmp_path / "out", *more, "--json")
    assert result.exit_code == 2, result.output
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["field"]) == ("invalid_spec", field)
    assert not (tmp_path / "out").exists()
