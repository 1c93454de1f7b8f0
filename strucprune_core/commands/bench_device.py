"""`strucprune bench-device`: measures a table of times on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from strucprune_core.commands.arguments import whole_number
from strucprune_core.commands.failures import failures


def bench_device(
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where the table goes; standard output if left out."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="[cpu|cuda]", help="Where tensors are computed.")
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
    with failures(as_json=False):
        from strucprune_core.commands.bench import run_bench

        run_bench(
            output, device=device, dtype=dtype, threads=threads, largest=largest, seconds=seconds
        )
