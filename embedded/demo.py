"""The product's main job from end to end, on this machine: prune SmolLM2-135M over REST.

    python -m embedded.demo [--keep]

Starts the whole stack, uploads the model, two texts and a task, and submits a job of two sizes.
Follows it, downloads the pruned checkpoints and their reports to .demo/result, shows quality, task
accuracy, speed and samples side by side, and lets the smaller model write a sentence in a process
that knows nothing of ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from embedded.model import ensure_model
from embedded.s3 import REGION
from embedded.stack import ROOT, WORK_BUCKET, Stack
from embedded.text import Texts, ensure_texts
from strucprune_core.client import Job, StrucPruneClient
from strucprune_core.report.document import SizeSummary
from strucprune_core.report.sizes import SizesReport
from strucprune_core.report.visible_text import visible

DIRECTORY = Path(".demo")
# Where in the bucket the model is put; texts lie under text/, the task under tasks/.
MODEL_KEY = "models/smollm2-135m"
TASK = "everyday"
PROMPT = "The most famous play by William Shakespeare is"
# As a shell reports a program that Ctrl-C ended.
_INTERRUPTED = 130


def job_spec(output: str) -> dict[str, Any]:
    """The job: remove 20 % and 40 % of all FFN channels, wherever they are missed least."""
    return {
        "model": {"uri": f"s3://{WORK_BUCKET}/{MODEL_KEY}"},
        "output": {"uri_prefix": f"s3://{WORK_BUCKET}/{output}"},
        "pruning": {"sizes": [0.2, 0.4], "allocation": "threshold", "layout": "per_layer"},
        "calibration": {
            "uri": f"s3://{WORK_BUCKET}/text/calibration.txt",
            "samples": 32,
            "sequence_length": 512,
        },
        "evaluation": {
            "uri": f"s3://{WORK_BUCKET}/text/evaluation.txt",
            "sequences": 8,
            "sequence_length": 512,
            "tasks": [TASK],
            "limit": 40,
            "task_files": f"s3://{WORK_BUCKET}/tasks",
            "samples": True,
            "sample_tokens": 16,
            "prompts": [PROMPT, "Water freezes when the temperature"],
            "speed": True,
        },
        "labels": {"made-by": "demo"},
    }


def main() -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m embedded.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the stack running afterwards")
    keep = parser.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    console = Console()
    try:
        return run(console, keep=keep)
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return _INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # SIGTERM unwinds as Ctrl-C does, so that the stack is stopped in order. SIGINT is set as well:
    # a script's background command (`make demo &`) begins with it ignored.
    raise KeyboardInterrupt


def run(console: Console, *, keep: bool) -> int:
    """The demo itself; the exit status."""
    with console.status("Preparing SmolLM2-135M and the texts (cached after the first time)"):
        model, texts = ensure_model(), ensure_texts()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    stack = Stack(DIRECTORY.resolve() / "stack")
    try:
        with console.status("Starting Valkey, S3, API, reconciler and worker") as status:
            stack.start()
            status.update("Uploading the model and the texts")
            upload(stack, model, texts)
        if keep:
            show_access(console, stack)
        succeeded = prune(console, stack)
        if keep:
            console.print("Everything is left running. Ctrl-C stops it.")
            signal.pause()
        return 0 if succeeded else 1
    finally:
        with console.status("Stopping"):
            stack.stop()
        shutil.rmtree(DIRECTORY / "stack" / "s3", ignore_errors=True)


def upload(stack: Stack, model: Path, texts: Texts) -> None:
    """Put the model, the texts and the task where the job will look for them."""
    client = stack.s3.client()
    for path in model.iterdir():
        client.upload_file(str(path), WORK_BUCKET, f"{MODEL_KEY}/{path.name}")
    for path in (texts.calibration, texts.evaluation):
        client.upload_file(str(path), WORK_BUCKET, f"text/{path.name}")
    for path in (ROOT / "embedded" / "tasks").glob(f"{TASK}.*"):
        client.upload_file(str(path), WORK_BUCKET, f"tasks/{path.name}")


def prune(console: Console, stack: Stack) -> bool:
    """Submit the job, follow it and show what it made. False if it failed."""
    with stack.client() as client:
        job = client.submit(job_spec(f"pruned/{uuid.uuid4().hex[:8]}"))
        console.print(f"Submitted [bold]{job.id}[/bold] to {stack.api_url}")
        job = follow(console, client, job.id)
        if job.state != "succeeded":
            show_failure(console, stack, job)
            return False
        result = DIRECTORY / "result"
        client.download(job.id, result)
        report = SizesReport.model_validate(client.report(job.id))
        show_report(console, report)
    console.print(f"Checkpoints and reports: [bold]{result}[/bold] (open report.html)")
    smallest = min(
        (each for each in report.sizes if each.folder), key=lambda each: each.after.bytes
    )
    console.print(
        f"\nThe model of size {smallest.name}, loaded with transformers in a fresh process, writes:"
    )
    sentence = write_sentence(result / (smallest.folder or ""))
    console.print(f"[italic]{sentence}[/italic]", highlight=False)
    return True


def follow(console: Console, client: StrucPruneClient, job_id: str) -> Job:
    """Show the job's progress until it has ended; the job."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("queued", total=1.0, left="")

        def show(job: Job) -> None:
            progress = job.progress
            if progress is None:
                bar.update(task, description=job.state)
                return
            eta = progress.eta_seconds
            bar.update(
                task,
                description=progress.phase,
                completed=progress.fraction,
                left="" if eta is None else f"about {eta:.0f} s left",
            )

        return client.wait(job_id, on_change=show)


def show_failure(console: Console, stack: Stack, job: Job) -> None:
    """Say why the job did not succeed."""
    if job.error is None:
        console.print(f"[red]The job is {job.state}[/red]")
    else:
        console.print(f"[red]The job {job.state}: {job.error.code}[/red]")
        console.print(job.error.message, job.error.remedy or "", highlight=False)
    console.print("\nThe end of the worker's log:", style="bold")
    console.print(stack.workers[0].log_tail(), highlight=False, markup=False)


def show_report(console: Console, report: SizesReport) -> None:
    """The report's main figures as a table, a model in each column, and what the models write."""
    table = Table(title="SmolLM2-135M in two sizes, from one measurement")
    table.add_column("")
    for name in ("dense", *(f"{float(each.name):.0%} removed" for each in report.sizes)):
        table.add_column(name, justify="right")
    for label, field in (("parameters", "parameters"), ("bytes", "bytes")):
        sizes = (getattr(size, field) for size in (report.before, *_after(report)))
        table.add_row(label, *(f"{size / 1e6:.1f} M" for size in sizes))
    perplexities = (report.perplexity_before, *(each.perplexity for each in report.sizes))
    table.add_row("perplexity", *(_shown(value, ".2f") for value in perplexities))
    table.add_row(f"accuracy on '{TASK}'", *_accuracies(report))
    gains = (None if each.speed is None else each.speed.decode_gain for each in report.sizes)
    table.add_row("speed while writing", "x 1", *(_shown(gain, ".2f", "x ") for gain in gains))
    console.print(table)
    for place, sample in enumerate(report.sizes[0].samples):
        console.print(sample.prompt, style="bold", highlight=False, markup=False)
        texts = [("dense", sample.dense_text)]
        texts += [(each.name, each.samples[place].pruned_text) for each in report.sizes]
        for name, text in texts:
            console.print(f"  {name:<7}{visible(text)}", highlight=False, markup=False)
    console.print(f"{sum(phase.seconds for phase in report.phases):.0f} s of work")


def _after(report: SizesReport) -> list[SizeSummary]:
    return [each.after for each in report.sizes]


def _accuracies(report: SizesReport) -> Iterator[str]:
    """Of the dense model and each size, with standard errors."""
    judged = [each.tasks for each in report.sizes]
    first = judged[0]
    scores = [None if first is None else first.dense[0]]
    scores += [None if each is None else each.pruned[0] for each in judged]
    for score in scores:
        metric = None if score is None else score.metric("acc")
        if metric is None:
            yield _shown(None, "")
        else:
            yield _shown(metric.value, ".2f") + _shown(metric.standard_error, ".2f", " ± ", "")


def _shown(value: float | None, form: str, before: str = "", none: str = "–") -> str:
    return none if value is None else f"{before}{value:{form}}"


def write_sentence(checkpoint: Path) -> str:
    """What the checkpoint writes, in a process that knows nothing of ours."""
    completed = subprocess.run(
        [sys.executable, "-m", "embedded.generate", str(checkpoint.resolve()), PROMPT],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            # The checkpoint's own code is copied there; keep the user's home as it is.
            "HF_MODULES_CACHE": str((DIRECTORY / "modules").resolve()),
        },
    )
    return completed.stdout.strip()


def show_access(console: Console, stack: Stack) -> None:
    """How to use what runs: printed first, so that the job can be watched on the page."""
    # Plain lines, not wrapped: they are there to be copied.
    console.print(access(stack), highlight=False, markup=False, soft_wrap=True)


def access(stack: Stack) -> str:
    """Lines for another terminal, and where to look."""
    s3 = stack.s3
    return f"""
Everything runs, and stays. The page is {stack.api_url}/ with the key below. In another terminal:

export URL={stack.api_url} KEY={stack.api_key}

and, for S3 clients and the command `strucprune`:

export AWS_ENDPOINT_URL={s3.endpoint_url} AWS_REGION={REGION}
export AWS_ACCESS_KEY_ID={s3.access_key_id} AWS_SECRET_ACCESS_KEY={s3.secret_access_key}

In S3    s3://{WORK_BUCKET}/{MODEL_KEY}  s3://{WORK_BUCKET}/text/{{calibration,evaluation}}.txt
API      {stack.api_url}/docs
Logs     {stack.log_directory}
"""


if __name__ == "__main__":
    sys.exit(main())
