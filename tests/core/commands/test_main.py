"""The `strucprune` command, as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from strucprune_core import __version__
from strucprune_core.commands.figures import count, counts, flops, number, size, sizes
from strucprune_core.evaluation import known_rates
from strucprune_core.plan.rates import DeviceRates
from tests.core.commands.calling import call, failed, prune_command, result_of
from tests.support.rates import RATES


@pytest.fixture(scope="module")
def pruned(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, text_file: Path
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("cli") / "out"
    evaluation = ("--evaluation", text_file, "--evaluation-sequences", "2")
    more = (*evaluation, "--evaluation-sequence-length", "32")
    return output, result_of(*prune_command(tiny_model, text_file, output, *more))


@pytest.mark.parametrize(
    "command",
    [[], ["inspect"], ["convert"], ["prune"], ["evaluate"], ["verify"], ["jobs"], ["keys"]],
)
def test_help(command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"strucprune {__version__}\n")


def test_inspect(tiny_model: Path) -> None:
    facts = result_of("inspect", tiny_model)
    assert (facts["architecture"], facts["layers"]) == ("llama", 4)
    assert facts["exports"] == ["gguf", "gguf_q8_0", "fp8", "block_configs"]
    assert (facts["query_heads"], facts["kv_heads"]) == ([4] * 4, [2] * 4)
    shown = call("inspect", tiny_model).stdout
    assert "parameters" in shown
    assert re.search("query heads +4 in each layer", shown)
    assert re.search("kv heads +2 in each layer", shown)
    assert re.search("intermediate sizes +192 in each layer", shown)
    assert "experts" not in shown


def test_inspect_shows_layers_that_differ(pruned: tuple[Path, dict[str, Any]]) -> None:
    output, report = pruned
    widths = [layer["width_after"] for layer in report["layers"]]
    assert len(set(widths)) > 1
    shown = " ".join(call("inspect", output).stdout.split())
    assert f"intermediate sizes {', '.join(map(str, widths))} " in shown


@pytest.mark.parametrize("option", ["--sparsity", "--min-keep-fraction", "--max-layer-sparsity"])
def test_percentages(tmp_path: Path, tiny_model: Path, text_file: Path, option: str) -> None:
    error = failed(*prune_command(tiny_model, text_file, tmp_path / "out", option, "30"))
    assert "did you mean 0.3?" in error["message"]
    assert error["field"] == f"pruning.{option.strip('-').replace('-', '_')}"


@pytest.mark.parametrize(
    ("output", "workspace", "field"),
    [
        ("model/out", "ws", "output.uri_prefix"),
        ("model", "ws", "output.uri_prefix"),
        (".", "ws", "output.uri_prefix"),
        ("out", "model/ws", "workspace"),
        ("out", "model", "workspace"),
        ("out", ".", "workspace"),
        ("out", "out/ws", "workspace"),
        ("ws/out", "ws", "workspace"),
        ("out", "link/ws", "workspace"),
    ],
)
def test_places_in_one_another(
    tmp_path: Path, tiny_model: Path, text_file: Path, output: str, workspace: str, field: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    error = failed(
        *prune_command(tmp_path / "model", text_file, tmp_path / output, "--workspace"),
        tmp_path / workspace,
    )
    assert (error["code"], error["field"]) == ("invalid_spec", field)
    assert "of its own" in error["remedy"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_names_that_only_begin_alike_are_apart(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    workspace = ("--workspace", tmp_path / "model-work")
    result_of(*prune_command(model, text_file, tmp_path / "model-out", *workspace))


def test_the_home_directory_is_meant(
    tmp_path: Path, tiny_model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny_model, home / "model")
    shutil.copy(text_file, home / "text.txt")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    options = ("--workspace", "~/ws", "--evaluation", "~/text.txt", "--evaluation-sequences", "2")
    more = (*options, "--evaluation-sequence-length", "32")
    command = prune_command(Path("~/model"), Path("~/text.txt"), Path("~/out"), *more)
    result_of(*command)
    assert (home / "out/model.safetensors").exists()
    assert (home / "ws/units").exists()
    assert result_of("verify", "~/out")["valid"]
    assert list((tmp_path / "here").iterdir()) == []
    assert "a user who does not exist" in failed("inspect", "~no-such-user/m")["message"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"--min-keep-fraction": "1.0"}, "leave nothing to remove, .* raise pruning.max_layer"),
        ({"--multiple-of": "512"}, "leave nothing to remove"),
        ({"--min-keep-fraction": "0.9"}, r"at most 0\.1042\. Ask for at most 0\.1041, or"),
        ({"--sparsity": "0.0001"}, r"less than one structure\. Ask for at least 0\.001303"),
    ],
)
def test_what_can_be_asked_for(
    tmp_path: Path, tiny_model: Path, text_file: Path, limits: dict[str, str], words: str
) -> None:
    options = [part for pair in limits.items() for part in pair]
    result = call(*prune_command(tiny_model, text_file, tmp_path / "out", *options))
    message = " ".join(result.stderr.split())
    assert re.search(words, message), message
    asked = re.search(r"Ask for at (?:most|least) ([0-9.]+[0-9])", message)
    if asked is not None:  # the remedy helps
        result_of(
            *prune_command(
                tiny_model, text_file, tmp_path / "out", *options, "--sparsity", asked[1]
            )
        )


def test_prune_reports(pruned: tuple[Path, dict[str, Any]]) -> None:
    output, report = pruned
    assert report == json.loads((output / "report.json").read_text())
    assert report["sparsity"]["reached"] >= 0.3


def test_energies_and_rounds(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    more = ("--energy", "gradient", "--rounds", "2")
    report = result_of(*prune_command(tiny_model, text_file, tmp_path / "out", *more))
    assert report["spec"]["pruning"]["energy"] == "gradient"
    assert len(report["rounds"]) == 2


def test_evaluate_agrees_with_the_report(
    pruned: tuple[Path, dict[str, Any]], tiny_model: Path, text_file: Path
) -> None:
    output, report = pruned
    windows = ("--text", text_file, "--sequences", "2", "--sequence-length", "32")
    for model, which in ((tiny_model, "before"), (output, "after")):
        found = result_of("evaluate", model, *windows)
        assert found["perplexity"] == pytest.approx(report["perplexity"][which], rel=1e-5)


def test_results_for_people(tiny_model: Path, text_file: Path) -> None:
    windows = ("--text", text_file, "--sequences", "2", "--sequence-length", "32")
    judged = result_of("evaluate", tiny_model, *windows)
    shown = "".join(call("evaluate", tiny_model, *windows).stdout.split())
    assert f"perplexity{number(judged['perplexity'], 5)}sequences2" in shown
    assert judged["text_sha256"] in shown  # on a narrow terminal too


def test_verify(pruned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, _ = pruned
    assert result_of("verify", output)["valid"] is True
    altered = shutil.copytree(output, tmp_path / "altered")
    data = bytearray((altered / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (altered / "model.safetensors").write_bytes(data)
    failed = call("verify", altered, "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["error"]["code"] == "invalid_checkpoint"


def test_a_workspace_is_taken_up(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    workspace = ("--workspace", tmp_path / "work")
    first = result_of(*prune_command(tiny_model, text_file, tmp_path / "a", *workspace))
    again = result_of(*prune_command(tiny_model, text_file, tmp_path / "b", *workspace))
    assert again == first  # the finished units, report included, were not computed again
    other = call(*prune_command(tiny_model, text_file, tmp_path / "c", *workspace, "--seed", "1"))
    assert other.exit_code == 1
    assert "another job" in " ".join(other.output.split())


def test_a_summary_for_people(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    groups = ("--structure", "kv_groups", "--sparsity", "0.5")
    done = call(*prune_command(tiny_model, text_file, tmp_path / "out", *groups))
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.stdout.splitlines() if "KV cache" in line)
    report = json.loads((tmp_path / "out/report.json").read_text())
    before, after = (report[k]["kv_cache_bytes_per_token"] for k in ("before", "after"))
    assert after < before
    assert line.split(maxsplit=4)[4] == sizes(before, after)


@pytest.mark.parametrize(
    ("change", "exit_code", "code", "field"),
    [
        (["--sparsity", "1.5"], 2, "invalid_spec", "pruning.sparsity"),
        (["--sparsity", "0.95"], 2, "invalid_spec", "pruning.sparsity"),
        (["--layout", "uniform", "--allocation", "threshold"], 2, "invalid_spec", "pruning"),
        (["--calibration", "missing.txt"], 1, "object_not_found", "calibration.uri"),
        (["--samples", "9999"], 1, "invalid_text", "calibration.uri"),
        (["--sequence-length", "999999"], 2, "invalid_spec", "calibration.sequence_length"),
        (["--calibration", "/"], 2, "invalid_spec", "calibration.uri"),
        (["--calibration", "DIRECTORY"], 1, "object_not_found", "calibration.uri"),
        (["--output", "DIRECTORY"], 2, "invalid_spec", "output.uri_prefix"),
        (["--output", "FILE"], 1, "storage_error", "output.uri_prefix"),
        (["--output", "FILE/below"], 1, "storage_error", "output.uri_prefix"),
        (["--output", "/proc/new"], 1, "access_denied", "output.uri_prefix"),
        (["--workspace", "FILE"], 1, "storage_error", "workspace"),
        (["--device", "abacus"], 2, "invalid_spec", "runtime.device"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    change: list[str],
    exit_code: int,
    code: str,
    field: str,
) -> None:
    places = {"DIRECTORY": str(tiny_model), "FILE": str(text_file)}
    change = [re.sub("DIRECTORY|FILE", lambda found: places[found[0]], part) for part in change]
    result = call(*prune_command(tiny_model, text_file, tmp_path / "out", *change), "--json")
    assert result.exit_code == exit_code, result.output
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["field"]) == (code, field)
    assert error["phase"] is None  # before any work
    assert not (tmp_path / "out").exists()


def test_a_missing_model(tmp_path: Path) -> None:
    result = call("inspect", tmp_path / "nothing", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["field"] == "model.uri"


def test_a_missing_text(tmp_path: Path, tiny_model: Path) -> None:
    shown = call("evaluate", tiny_model, "--text", tmp_path / "nothing.txt").stderr
    assert "): --text: there is no text " in shown


def test_an_estimate_says_how_long_it_takes_here(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def known(folder: Path, device: str) -> DeviceRates | None:
        asked.append(device)
        return RATES if device == "cpu" else None

    monkeypatch.setattr(known_rates, "known_rates", known)
    exact = result_of("estimate", tiny_model, "--device", "cpu")
    assert exact["time"]["device"] == "a processor"
    assert 0 < exact["time"]["least_seconds"] < exact["time"]["most_seconds"]
    shown = " ".join(call("estimate", tiny_model, "--device", "cpu").stdout.split())
    assert "Time, on this machine in all about" in shown
    assert "on a processor, 1 thread" in shown
    assert asked == ["cpu", "cpu"]
    # It cannot be told, or is not to be.
    assert result_of("estimate", tiny_model, "--device", "cuda")["time"] is None
    assert "Time" not in call("estimate", tiny_model, "--device", "cuda").stdout
    assert result_of("estimate", tiny_model, "--no-time")["time"] is None
    assert asked == ["cpu", "cpu", "cuda", "cuda"]


def test_an_estimate_for_people(tiny_model: Path) -> None:
    options = ("--size", "0.2", "--size", "0.5", "--export", "gguf", "--measure-speed")
    exact = result_of("estimate", tiny_model, *options)
    shown = call("estimate", tiny_model, *options).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for heading in ("Result", "Memory, at most", "Disk and reading", "Work"):
        assert heading in lines
    assert f"parameters {counts(exact['parameters_before'], exact['parameters_after'])}" in lines
    assert f"of the process {size(exact['host_peak_bytes'])}" in lines
    second = exact["sizes"]["0.5"]
    found = (count(second["parameters_after"]), size(second["bytes_after"]))
    (row,) = (line for line in lines if line.startswith("0.5 "))
    assert row.split(" ", 2)[2] == " ".join([*found, size(second["export_bytes"]["gguf"])])
    assert f"in all {flops(sum(exact['flops'].values()))}" in lines
    assert not re.search(r"\d{7}|[{}]|None", shown)
