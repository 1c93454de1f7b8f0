"""`strucprune bench-device`: measures a table of times on this machine, and writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from strucprune_core.commands.arguments import whole_number
from strucprune_core.commands.console import (
    local_path,
    progress_bar,
    show_warnings,
    stderr,
    write_file,
)
from strucprune_core.commands.failures import failures
from strucprune_core.errors import InvalidSpec

# Beyond it, the machine probably did something else as well.
_MOST_SPREAD = 0.15


def bench_device(
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where the table goes; standard output if left out."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="[cpu|cuda|cuda:N]", help="Where tensors are computed.")
    ] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="[bfloat16|float16|float32]", help="That of the models.")
    ] = "bfloat16",
    threads: Annotated[
        int | None, whole_number("NUMBER", "Threads of torch. By default as torch chooses.")
    ] = None,
    largest: Annotated[
        int,
        typer.Option(
            metavar="NUMBER",
            min=512,
            max=16384,
            help="Largest hidden size; FFNs may be four times as wide. More takes more memory.",
        ),
    ] = 4096,
    seconds: Annotated[
        int, whole_number("SECONDS", "About how long; slow devices may take longer.")
    ] = 120,
) -> None:
    """Measure how fast this machine is, for --target-speedup.

    Times products of many shapes, attention, norms and the rest, in transformers' modules, and
    writes them as a table: the file that --target-device takes. Let the machine do nothing else.
    """
    import torch

    from strucprune_core.evaluation.device_bench import Setup, check_setup, measure

    with failures(as_json=False):
        setup = Setup(device, dtype, threads or torch.get_num_threads(), largest, float(seconds))
        check_setup(setup)
        path = None if output is None else _new_file(output)
        stderr.print(
            f"measuring {device} in {dtype} with {setup.threads} threads; this takes about "
            f"{seconds} s, or longer on a slow device",
            highlight=False,
        )
        with progress_bar() as bar:
            task = bar.add_task("measuring", total=1.0)
            table = measure(setup, tick=lambda share: bar.update(task, completed=share))
        text = table.model_dump_json(indent=1) + "\n"
        if path is None:
            sys.stdout.write(text)
        else:
            write_file(path, text, "--output", new=True)
        if table.spread > _MOST_SPREAD:
            show_warnings(
                [
                    f"repeated measurements differ by {table.spread:.0%}: the machine did "
                    "something else, or its clock changed. Measure again when it is idle, or for "
                    "longer (--seconds)."
                ]
            )


def _new_file(name: str) -> Path:
    path = local_path(name, "--output")
    if path.exists():
        raise InvalidSpec(
            f"{name} exists already", field="--output", remedy="Name another file, or remove it."
        )
    return path
