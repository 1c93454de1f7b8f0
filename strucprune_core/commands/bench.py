"""`strucprune bench-device`: measures a table of times, and writes it."""

from __future__ import annotations

import sys

import torch

from strucprune_core.commands.console import local_path, progress_bar, show_warnings, stderr
from strucprune_core.errors import InvalidSpec
from strucprune_core.evaluation.device_bench import Setup, check_setup, measure
from strucprune_core.plan.device_table import DeviceTable

# Beyond it, the machine probably did something else as well.
_MOST_SPREAD = 0.15


def run_bench(
    output: str | None, *, device: str, dtype: str, threads: int | None, largest: int, seconds: int
) -> None:
    """Measure, and write the table to a new file or to standard output.

    Raises:
        InvalidSpec: a value is none that can be measured, or the file cannot be written.
    """
    setup = Setup(device, dtype, threads or torch.get_num_threads(), largest, float(seconds))
    check_setup(setup)
    path = None if output is None else local_path(output, "--output")
    if path is not None and path.exists():
        raise InvalidSpec(
            f"{output} exists already", field="--output", remedy="Name another file, or remove it."
        )
    stderr.print(
        f"measuring {device} in {dtype} with {setup.threads} threads; this takes about "
        f"{seconds} s, or longer on a slow device",
        highlight=False,
    )
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=1.0)
        table = measure(setup, tick=lambda share: bar.update(task, completed=share))
    text = written(table)
    if path is None:
        sys.stdout.write(text)
    else:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InvalidSpec(
                f"cannot write {output}: {error.strerror}",
                field="--output",
                remedy="Check its folder and its permissions.",
            ) from error
    show_warnings(_warnings(table))


def written(table: DeviceTable) -> str:
    """The table as a file holds it: one line for each pass, to be read by people too."""
    return table.model_dump_json(indent=1) + "\n"


def _warnings(table: DeviceTable) -> list[str]:
    if table.spread <= _MOST_SPREAD:
        return []
    return [
        f"repeated measurements differ by {table.spread:.0%}: the machine did something else, or "
        "its clock changed. Measure again when it is idle, or for longer (--seconds)."
    ]
