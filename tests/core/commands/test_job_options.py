"""Options of a job: made from the specification, the same wherever a command takes a job."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from strucprune_core.commands.job_body import job_body, parse_spec
from strucprune_core.commands.job_options import OPTIONS, JobOption
from strucprune_core.commands.main import app
from strucprune_core.errors import InvalidSpec
from strucprune_core.plan.device_table import shipped_tables
from strucprune_core.spec import JobSpec
from tests.support.device_tables import made_table

REQUIRED: dict[tuple[str, ...], Any] = {
    ("model", "uri"): "m",
    ("output", "uri_prefix"): "o",
    ("calibration", "uri"): "t.txt",
    ("pruning", "sparsity"): 0.3,
}
# One value for each option that is not its default, as the command line gives it.
GIVEN: dict[tuple[str, ...], Any] = {
    ("model", "adapter_uri"): "a",
    ("output", "dtype"): "bfloat16",
    ("pruning", "structures"): ["ffn_channels", "kv_groups"],
    ("pruning", "allocation"): "softmax",
    ("pruning", "temperature"): 0.5,
    ("pruning", "energy"): "gradient",
    ("pruning", "rounds"): 2,
    ("pruning", "solver"): "admm",
    ("pruning", "recover", "steps"): 3,
    ("pruning", "recover", "mode"): "parallel",
    ("pruning", "distill", "steps"): 4,
    ("pruning", "distill", "batch_sequences"): 2,
    ("pruning", "distill", "learning_rate"): 0.01,
    ("pruning", "layout"): "per_layer",
    ("pruning", "exports"): ["gguf"],
    ("pruning", "damping"): 0.2,
    ("pruning", "min_keep_fraction"): 0.2,
    ("pruning", "max_layer_sparsity"): 0.8,
    ("pruning", "max_sparsity_by_layer"): ["3=0.1", "0=0"],
    ("pruning", "multiple_of"): 8,
    ("calibration", "format"): "jsonl",
    ("calibration", "field"): "body",
    ("calibration", "chat_template"): True,
    ("calibration", "samples"): 9,
    ("calibration", "sequence_length"): 64,
    ("calibration", "seed"): 7,
    ("calibration", "allow_degenerate"): True,
    ("evaluation", "uri"): "e.txt",
    ("evaluation", "sequences"): 3,
    ("evaluation", "sequence_length"): 128,
    ("evaluation", "max_perplexity_ratio"): 3.0,
    ("evaluation", "samples"): True,
    ("evaluation", "prompts"): ["Once upon a time", "1, 2, 3,"],
    ("evaluation", "sample_tokens"): 5,
    ("evaluation", "speed"): True,
    ("evaluation", "tasks"): ["piqa", "mine"],
    ("evaluation", "task_files"): "tasks",
    ("evaluation", "limit"): 50,
    ("evaluation", "num_fewshot"): 2,
    ("evaluation", "min_task_retention"): 0.9,
    ("runtime", "device"): "cpu",
    ("runtime", "precision"): "bfloat16",
    ("runtime", "micro_batch_tokens"): 512,
    ("runtime", "device_memory_bytes"): "2GiB",
    ("runtime", "host_memory_bytes"): "3GiB",
    ("runtime", "priority"): "low",
    ("runtime", "deadline_seconds"): 60,
    ("runtime", "max_attempts"): 2,
    ("runtime", "max_workers"): 4,
    ("name",): "Nightly, 30 %",
    ("labels",): ["team=a", "run=b=c"],
}
TARGET: dict[str, Any] = {
    "parameters": "120M",
    "bytes": "2GiB",
    "memory_bytes": "2GiB",
    "max_perplexity_ratio": 1.2,
    "tries": 2,
    "speedup": 1.3,
    "of": "checkpoint",
    "context_tokens": 128,
    "batch_sequences": 3,
    "device": shipped_tables()[0],
}
# What each of them is given with; the other kinds stand alone.
BESIDE: dict[str, tuple[str, ...]] = {
    "memory_bytes": ("of", "context_tokens"),
    "of": ("memory_bytes", "context_tokens"),
    "context_tokens": ("memory_bytes", "of"),
    "batch_sequences": ("memory_bytes",),
    "tries": ("max_perplexity_ratio",),
    "speedup": ("device",),
    "device": ("speedup",),
}
# The same of options that do not go with those.
ALONE: dict[tuple[str, ...], Any] = {
    ("pruning", "structures"): ["experts"],
    ("pruning", "expert_score"): "reap",
    ("pruning", "expert_repair"): True,
    ("pruning", "expert_count"): 6,
    ("pruning", "sizes"): ["0.2", "0.5"],
    **{("pruning", "target", name): value for name, value in TARGET.items()},
}
TRANSLATED: dict[tuple[str, ...], Any] = {
    ("pruning", "sizes"): [0.2, 0.5],
    ("pruning", "target", "parameters"): 120_000_000,
    ("pruning", "target", "bytes"): 2 * 2**30,
    ("pruning", "target", "memory_bytes"): 2 * 2**30,
    ("pruning", "max_sparsity_by_layer"): {3: 0.1, 0: 0.0},
    ("runtime", "device_memory_bytes"): 2 * 2**30,
    ("runtime", "host_memory_bytes"): 3 * 2**30,
    ("labels",): {"team": "a", "run": "b=c"},
}


def value_at(spec: JobSpec, path: tuple[str, ...]) -> Any:
    value: Any = spec
    for name in path:
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def instead(path: tuple[str, ...]) -> bool:
    """Whether an option says how much is removed, in place of a sparsity."""
    return path[:1] == ("pruning",) and path[1] in ("sizes", "target", "expert_count")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_option_sets_its_field(option: JobOption) -> None:
    given = {**REQUIRED, **(GIVEN if option.path in GIVEN else ALONE)}
    for path in [path for path in given if path != ("pruning", "sparsity") and instead(path)]:
        of_target = path[1] == "target" == option.path[1]
        if path != option.path and not (of_target and path[-1] in BESIDE.get(option.path[-1], ())):
            del given[path]
    if option.path[-1] in ("max_perplexity_ratio", "tries"):
        given["evaluation", "uri"] = "e.txt"
        for name in ("structures", "expert_score", "expert_repair"):
            given.pop(("pruning", name), None)
    if instead(option.path):
        del given["pruning", "sparsity"]
    spec = parse_spec(job_body(None, given))
    assert value_at(spec, option.path) == TRANSLATED.get(option.path, given[option.path])


def test_what_is_not_given_is_left_to_the_specification() -> None:
    body = job_body(None, REQUIRED)
    assert body == {
        "model": {"uri": "m"},
        "output": {"uri_prefix": "o"},
        "calibration": {"uri": "t.txt", "source": "file"},
        "pruning": {"sparsity": 0.3},
    }


def test_every_field_has_a_description_and_every_option_a_name_of_its_own() -> None:
    assert all(option.field.description for option in OPTIONS)
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names)


def test_all_commands_take_the_same_options() -> None:
    def options(*command: str) -> set[str]:
        help_text = CliRunner().invoke(app, [*command, "--help"]).stdout
        _, _, sections = help_text.partition("Arguments:")
        return set(re.findall(r"^ +(--[a-z-]+)", sections, re.MULTILINE))

    prune, estimate, submit = options("prune"), options("estimate"), options("jobs", "submit")
    assert prune - estimate == {"--workspace"}
    assert estimate - submit == {"--time"}
    assert {"--priority", "--max-workers", "--label"} <= submit - estimate


def test_options_go_before_a_file(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    pruning = {"sparsity": 0.5, "solver": "admm", "recover": {"steps": 5}}
    file.write_text(json.dumps({"pruning": pruning, "calibration": {"source": "self"}}))
    body = job_body(str(file), {("pruning", "sparsity"): 0.2})
    assert body["pruning"] == {**pruning, "sparsity": 0.2}
    assert body["calibration"] == {"source": "self"}
    body = job_body(str(file), {**REQUIRED, ("pruning", "recover", "steps"): 0})
    assert "recover" not in body["pruning"]
    assert body["calibration"] == {"source": "file", "uri": "t.txt"}


def test_text_of_the_models_own() -> None:
    given = {**REQUIRED, ("calibration", "uri"): "self"}
    assert job_body(None, given)["calibration"] == {"source": "self"}


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        (("model", "uri"), "MODEL is missing"),
        (("output", "uri_prefix"), "--output is missing"),
        (("pruning", "sparsity"), "--sparsity is missing"),
        (("calibration", "uri"), "--calibration is missing"),
    ],
)
def test_what_is_missing_is_named(left_out: tuple[str, ...], words: str) -> None:
    given = {path: value for path, value in REQUIRED.items() if path != left_out}
    with pytest.raises(InvalidSpec, match=words):
        parse_spec(job_body(None, given))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("runtime", "device_memory_bytes"), "much", "--device-memory"),
        (("labels",), ["team"], "--label"),
        (("pruning", "max_sparsity_by_layer"), ["3"], "--max-sparsity-by-layer"),
    ],
)
def test_values_that_cannot_be_read(path: tuple[str, ...], value: Any, field: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        job_body(None, {**REQUIRED, path: value})
    assert raised.value.field == field


def test_an_estimate_counts_what_the_job_would_do(tiny_model: Path) -> None:
    def estimated(*options: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["estimate", str(tiny_model), *options, "--json"])
        assert done.exit_code == 0, done.output
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    plain = estimated()
    trained = estimated("--distill-steps", "20")
    assert sum(trained["flops"].values()) > sum(plain["flops"].values())
    assert trained["step_bytes"] != plain["step_bytes"]


def device_job(device: str | Path) -> dict[tuple[str, ...], Any]:
    """A job that asks for a speedup on a device."""
    asked = {path: value for path, value in REQUIRED.items() if path[-1] != "sparsity"}
    target = {"speedup": 1.3, "device": str(device)}
    return {**asked, **{("pruning", "target", name): value for name, value in target.items()}}


def test_a_device_of_the_package_stays_a_name() -> None:
    target = job_body(None, device_job(shipped_tables()[0]))["pruning"]["target"]
    assert target == {"speedup": 1.3, "device": shipped_tables()[0]}


def test_a_file_of_a_device_goes_into_the_job(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(made_table().model_dump_json(), encoding="utf-8")
    target = parse_spec(job_body(None, device_job(file))).pruning.target
    assert target is not None
    assert (target.device, target.device_table) == (None, made_table())


def test_a_device_replaces_that_of_a_specification(tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    target = {"speedup": 2.0, "device_table": made_table().model_dump(mode="json")}
    spec.write_text(json.dumps({"pruning": {"target": target}}), encoding="utf-8")
    kept = parse_spec(job_body(str(spec), {**REQUIRED, ("pruning", "sparsity"): None}))
    assert kept.pruning.target is not None
    assert kept.pruning.target.device_table == made_table()
    changed = parse_spec(job_body(str(spec), device_job(shipped_tables()[0]))).pruning.target
    assert changed is not None
    assert (changed.device, changed.device_table) == (shipped_tables()[0], None)


def test_a_device_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="neither a file nor a table") as error:
        job_body(None, device_job(tmp_path / "missing.json"))
    assert shipped_tables()[0] in (error.value.remedy or "")
    (tmp_path / "text.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidSpec, match="is no table of a device"):
        job_body(None, device_job(tmp_path / "text.json"))
    with pytest.raises(InvalidSpec, match="cannot read"):
        job_body(None, device_job(tmp_path))
