"""The `strucprune` command: inspect, convert, prune, evaluate, verify and publish need no service.

`commands.console` holds what all commands share, `jobs` and `keys` the commands for a service.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress
from rich.table import Table

from strucprune_core import __version__
from strucprune_core.commands import jobs, keys
from strucprune_core.commands.console import (
    JsonOption,
    failures,
    predicted_line,
    progress_bar,
    show,
    show_estimate,
    show_samples,
    show_speed,
    show_tasks,
    show_warnings,
    stderr,
)
from strucprune_core.commands.job_options import JobBody, parse_spec, takes_job
from strucprune_core.errors import Stopped
from strucprune_core.report.document import Report, TaskScores
from strucprune_core.report.sizes import AnyReport, SizesReport
from strucprune_core.run import progress as core_progress
from strucprune_core.spec import JobSpec

if TYPE_CHECKING:
    from strucprune_core.models.config import ModelConfig

app = typer.Typer(
    name="strucprune",
    help="Make a large language model smaller and faster: whole FFN channels and attention heads "
    "are removed and the rest is repaired, one decoder layer in memory at a time.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Directory, s3://bucket/prefix or hf://org/name[@revision] with config.json, "
        "tokenizer.json and safetensors.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"strucprune {__version__}\n")
        raise typer.Exit


@app.callback()
def _options_of_all_commands(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    handler = RichHandler(console=stderr, show_path=False, show_level=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


@app.command()
def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show what a model is and whether it can be pruned. Reads no weights."""
    from strucprune_core.errors import naming_field
    from strucprune_core.export.checks import possible_exports
    from strucprune_core.models.experts import experts_of
    from strucprune_core.plan.estimate import size_of
    from strucprune_core.plan.inspection import read_model
    from strucprune_core.storage.open import open_store, pinned

    with failures(as_json):
        with naming_field("model.uri"):
            model = pinned(model)
        facts = read_model(model, open_store)
        config = facts.config
        size = size_of(config, dtype_bytes=1)
        result: dict[str, Any] = {
            "model": model,
            "architecture": config.model_type,
            "layers": config.layers,
            "hidden_size": config.hidden_size,
            "intermediate_sizes": list(config.intermediate_sizes),
            "experts": [
                len(block.ffn_widths) if experts is None else experts.count
                for block, experts in zip(
                    config.blocks,
                    (experts_of(config, layer) for layer in range(config.layers)),
                    strict=True,
                )
            ],
            "query_heads": [block.query_heads for block in config.blocks],
            "kv_heads": [block.kv_heads for block in config.blocks],
            "head_dim": config.head_dim or None,
            "vocab_size": config.vocab_size,
            "parameters": size.parameters,
            "ffn_channels": size.ffn_channels,
            "bytes": facts.index.total_bytes,
            "quantised": facts.index.quantised,
            "exports": possible_exports(config, facts.index),
            "files": len(facts.index.file_sizes),
            "digest": facts.index.digest(),
        }
        show(result if as_json else _for_people(result, config), as_json)


def _for_people(facts: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The result of `inspect` with values of layers as short texts."""
    if max(facts["experts"]) <= 1:
        facts = {name: value for name, value in facts.items() if name != "experts"}
    else:
        facts = {**facts, "experts": _by_layer(facts["experts"])}
    return {
        **facts,
        "intermediate_sizes": _by_layer([_ffn(block.ffn_widths) for block in config.blocks]),
        "query_heads": _by_layer(facts["query_heads"]),
        "kv_heads": _by_layer(facts["kv_heads"]),
        "exports": ", ".join(facts["exports"]) or "none",
    }


def _by_layer(values: Sequence[object]) -> str:
    """The value of all layers, or that of each."""
    if len(set(values)) == 1:
        return f"{values[0]} in each layer"
    return ", ".join(str(value) for value in values)


def _ffn(widths: Sequence[int]) -> str:
    """The width of a layer's FFN, or of each of its experts; some layers have none."""
    if not widths:
        return "none"
    if len(set(widths)) == 1:
        return str(widths[0])
    return "/".join(str(width) for width in widths)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Model with pytorch_model.bin: directory, s3:// or hf://."
        ),
    ],
    output: Annotated[
        str, typer.Argument(metavar="DST", help="Where the safetensors go; must be empty.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Write a pickled model (.bin) as safetensors. Code in the pickle is refused, never run."""
    from strucprune_core.conversion import convert as run
    from strucprune_core.scratch.directories import scratch_directory
    from strucprune_core.storage.open import open_store

    with failures(as_json), scratch_directory() as scratch:
        with progress_bar() as bar:
            task = bar.add_task("converting", total=1.0)
            result = run(
                open_store(source),
                open_store(output),
                scratch,
                tick=lambda share: bar.update(task, completed=share),
            )
        show(result, as_json)


@app.command()
@takes_job()
def prune(
    body: JobBody,
    workspace: Annotated[
        str | None,
        typer.Option(help="Directory or s3:// prefix for finished steps; reuse it to resume."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prune a model and write the smaller one with its report.

    With --workspace, a run that was stopped (Ctrl-C, a crash, a power cut) continues when the same
    command is given again, and ends with the same bytes.
    """
    with failures(as_json):
        spec = parse_spec(body())
        report = _run_prune(spec, workspace)
        if as_json:
            show(report.model_dump(mode="json"), as_json=True)
        elif isinstance(report, SizesReport):
            _print_sizes(report, spec.output.uri_prefix)
        else:
            _print_summary(report, spec.output.uri_prefix)


@app.command()
@takes_job()
def estimate(body: JobBody, as_json: JsonOption = False) -> None:
    """Estimate a job: sizes before and after, memory by step, disk, work. Reads no weights.

    Takes the options of prune. The default is 30 % and a perplexity report of the default size.
    """
    from strucprune_core.plan.estimate import estimate_job
    from strucprune_core.plan.inspection import check_reach, read_job_model
    from strucprune_core.plan.targets import resolved
    from strucprune_core.storage.open import open_store

    with failures(as_json):
        spec = parse_spec(_estimated(body()))
        facts = read_job_model(spec, open_store)
        spec = resolved(spec, facts, partial(check_reach, config=facts.config))
        for alone in spec.by_size().values():
            check_reach(alone.pruning, facts.config)
        show_estimate(estimate_job(spec, facts).model_dump(), as_json)


def _estimated(body: dict[str, Any]) -> dict[str, Any]:
    """The job with placeholders where an estimate needs no value: it reads no text."""
    body["output"].setdefault("uri_prefix", "not-written")
    if not {"expert_count", "sizes", "target"} & {*body["pruning"]}:
        body["pruning"].setdefault("sparsity", 0.3)
    if body["calibration"].get("source") != "self":
        body["calibration"].setdefault("uri", "not-read.txt")
    body.setdefault("evaluation", {}).setdefault("uri", "not-read.txt")
    return body


@app.command()
def evaluate(
    model: ModelArgument,
    text: Annotated[
        str | None, typer.Option(help="Text (UTF-8); windows are taken from its start.")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Windows of the text.")] = 24,
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens per window.")] = 1024,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Tasks of lm-evaluation-harness, whose data it downloads, or of --task-files.",
        ),
    ] = None,
    task_files: Annotated[
        str | None, typer.Option(help="Directory, s3:// or hf:// prefix with task files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents of each task, from the first.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each document of a task.")
    ] = None,
    device: DeviceOption = "auto",
    micro_batch_tokens: Annotated[int, typer.Option(min=8, help="Tokens per pass.")] = 4096,
    as_json: JsonOption = False,
) -> None:
    """Judge a model, streamed: its perplexity on a text, its scores on tasks, or both.

    Each window of a text is scored on its own. Tasks need lm-evaluation-harness: pip install
    'strucprune[tasks]'.
    """
    from strucprune_core.errors import InvalidSpec

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    with failures(as_json):
        if text is None and not names:
            raise InvalidSpec(
                "there is nothing to judge by", remedy="Give --text, --tasks or both."
            )
        with progress_bar() as bar:
            task = bar.add_task("evaluating", total=1.0)
            result: dict[str, Any] = {"model": model}
            if text is not None:
                from strucprune_core.evaluation.standalone import evaluate_model

                result = evaluate_model(
                    model,
                    text,
                    sequences=sequences,
                    sequence_length=sequence_length,
                    device=device,
                    micro_batch_tokens=micro_batch_tokens,
                    tick=lambda share: bar.update(task, completed=share),
                )
            if names:
                from strucprune_core.evaluation.tasks.standalone import evaluate_tasks

                bar.update(task, total=None, description="evaluating tasks")
                result["tasks"] = evaluate_tasks(
                    model,
                    names,
                    task_files=task_files,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    device=device,
                    micro_batch_tokens=micro_batch_tokens,
                )
        _show_evaluation(result, as_json)


def _show_evaluation(result: dict[str, Any], as_json: bool) -> None:
    """The result; for people, tasks as a table below the rest."""
    if as_json:
        show(result, as_json)
        return
    show({name: value for name, value in result.items() if name != "tasks"}, as_json)
    if "tasks" in result:
        show_tasks([TaskScores.model_validate(each) for each in result["tasks"]])


@app.command("bench-device")
def bench_device(
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where the table goes; standard output if left out."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16 or float32: that of the models.")
    ] = "bfloat16",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. [default: as torch chooses]")
    ] = None,
    largest: Annotated[
        int,
        typer.Option(
            min=512,
            max=16384,
            help="Largest hidden size; FFNs may be four times as wide. More takes more memory.",
        ),
    ] = 4096,
    seconds: Annotated[
        int, typer.Option(min=1, help="About how long; slow devices may take longer.")
    ] = 120,
) -> None:
    """Measure what parts of models take on this machine, for jobs that ask for a speedup.

    Times products of many shapes, attention, norms and the rest, in transformers' modules, and
    writes them as a table: the file that --target-device takes. Let the machine do nothing else.
    """
    with failures(as_json=False):
        from strucprune_core.commands.bench import run_bench

        run_bench(
            output, device=device, dtype=dtype, threads=threads, largest=largest, seconds=seconds
        )


@app.command()
def verify(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A pruned checkpoint: directory, s3:// or hf://.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a pruned checkpoint: every file's digest, the tensors, and a reload in transformers."""
    from strucprune_core.evaluation.standalone import verify_checkpoint

    with failures(as_json):
        show(verify_checkpoint(directory), as_json)


@app.command()
def publish(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Output of a finished job: directory or s3://.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Repository of a hub: hf://org/name.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it. A new one is private.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove what the repository holds of another model.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a finished result to a Hugging Face hub, as one commit.

    The token is that of `huggingface_hub`: HF_TOKEN, or `hf auth login`.
    """
    from strucprune_core.errors import InvalidSpec
    from strucprune_core.run.publish_to_hub import publish_to_hub
    from strucprune_core.scratch.directories import scratch_directory
    from strucprune_core.storage.open import open_store
    from strucprune_core.storage.uri import parse_uri

    with failures(as_json), scratch_directory() as scratch:
        try:
            place = parse_uri(target)
        except ValueError as error:
            raise InvalidSpec(str(error), field="TARGET") from error
        with progress_bar() as bar:
            task = bar.add_task("publishing", total=1.0)
            result = publish_to_hub(
                open_store(directory),
                place,
                scratch,
                public=public,
                replace=replace,
                tick=lambda done, total: bar.update(task, completed=done / total),
            )
        show(asdict(result), as_json)


def main() -> None:
    """Entry point of the command."""
    app()


def _run_prune(spec: JobSpec, workspace: str | None) -> AnyReport:
    from strucprune_core.pipeline import run_job
    from strucprune_core.scratch.directories import scratch_directory, sweep
    from strucprune_core.storage.open import open_store

    interrupted = _StopOnInterrupt()
    sweep()  # Files that a killed run left.
    with scratch_directory() as scratch, progress_bar() as bar:
        show = _ProgressDisplay(bar)
        return run_job(
            spec,
            workspace=open_store(workspace or str(scratch / "workspace")),
            scratch=scratch,
            progress=show,
            stop=interrupted,
        )


class _ProgressDisplay:
    """A bar in a terminal; elsewhere (a log file, CI) a line for each new phase and tenth."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task(core_progress.Phase.INSPECTING.value, total=1.0)
        self._last = ("", -1)

    def __call__(self, progress: core_progress.Progress) -> None:
        label = f"{progress.phase.value} {progress.layers_done}/{progress.layers_total}"
        if stderr.is_terminal:
            self._bar.update(self._task, completed=progress.fraction, description=label)
            return
        step = (progress.phase.value, int(progress.fraction * 10))
        if step != self._last:
            self._last = step
            stderr.print(f"{progress.fraction:4.0%} {label}", highlight=False)


class _StopOnInterrupt:
    """Ctrl-C and SIGTERM stop at the next safe point; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        self._stopped = True
        stderr.print("stopping at the next safe point …")

    def check(self) -> None:
        """Raise `Stopped` once a signal has arrived."""
        if self._stopped:
            raise Stopped(
                "interrupted", remedy="With --workspace, the same command continues the run."
            )


def _print_sizes(report: SizesReport, output: str) -> None:
    from strucprune_core.report.html.numbers import ABSENT, count, number, percent, size

    before = report.before
    table = Table("", "parameters", "bytes", "perplexity", "ratio", "", box=None)
    dense = number(report.perplexity_before, none=ABSENT)
    table.add_row("dense", count(before.parameters), size(before.bytes), dense, "", "")
    for each in report.sizes:
        best = "best of its size" if each.best_of_its_size else ""
        table.add_row(
            f"{percent(each.sparsity.reached)} removed",
            count(each.after.parameters),
            size(each.after.bytes),
            number(each.perplexity, none=ABSENT),
            number(each.perplexity_ratio, none=ABSENT),
            "not published" if each.rejected else best,
        )
    console = Console()
    console.print(table)
    seconds = sum(phase.seconds for phase in report.phases)
    folders = ", ".join(each.folder for each in report.sizes if each.folder is not None)
    console.print(f"{seconds:.0f} s, written to {output}: {folders}", highlight=False)
    show_warnings(report.warnings)


def _print_summary(report: Report, output: str) -> None:
    table = Table("", "before", "after", "after / before", box=None)
    before, after = report.before, report.after
    rows: list[tuple[str, float, float, str]] = [
        ("parameters", before.parameters, after.parameters, ",.0f"),
        ("bytes", before.bytes, after.bytes, ",.0f"),
        ("FLOPs per token", before.flops_per_token, after.flops_per_token, ",.0f"),
    ]
    cached, left = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
    if cached is not None and left is not None:
        rows.append(("KV cache bytes per token", cached, left, ",.0f"))
    if report.perplexity is not None:
        rows.append(("perplexity", report.perplexity.before, report.perplexity.after, ".3f"))
    if report.tasks is not None:
        for before_task, after_task in zip(report.tasks.dense, report.tasks.pruned, strict=True):
            for was, now in zip(before_task.metrics, after_task.metrics, strict=True):
                rows.append((f"{before_task.task} {was.name}", was.value, now.value, ".4f"))
    for name, dense, pruned, style in rows:
        table.add_row(
            name,
            format(dense, style),
            format(pruned, style),
            f"{pruned / dense:.3f}" if dense else "",
        )
    console = Console()
    console.print(table)
    gone = report.sparsity
    console.print(f"sparsity {gone.reached:.4f}, {gone.requested:.4f} asked for", highlight=False)
    peak = report.memory.host_peak_bytes.measured or 0
    seconds = sum(phase.seconds for phase in report.phases)
    for export in report.exports:
        measured = "" if export.perplexity is None else f", perplexity {export.perplexity:.3f}"
        console.print(
            f"{export.name}: {export.bytes:,} bytes in {output}/{export.folder}{measured}"
        )
    if report.speed is not None:
        show_speed(report.speed)
    if report.predicted_speed is not None:
        line = predicted_line(report.predicted_speed, report.speed)
        console.print(line, markup=False, highlight=False)
    show_samples(report.samples)
    console.print(f"{seconds:.0f} s, peak host memory {peak / 1e6:.0f} MB, written to {output}")
    show_warnings(report.warnings)


if __name__ == "__main__":
    main()
