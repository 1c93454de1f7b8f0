"""`strucprune jobs compare`: results side by side, for people, as CSV or as JSON. No torch."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated

import typer

from strucprune_core.commands import figures
from strucprune_core.commands.console import (
    JsonOption,
    local_path,
    print_json,
    show_warnings,
    stderr,
    write_file,
)
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.compared import Result, perplexities_compare, results_of
from strucprune_core.commands.jobs.service import UrlOption, complete_id, connect
from strucprune_core.commands.tables import print_records
from strucprune_core.storage.uri import short_name


def compare_jobs(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB",
            help="Ids of succeeded jobs, or their beginnings.",
            autocompletion=complete_id,
        ),
    ],
    csv_file: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Write a table with exact numbers to this file, which is replaced; - for standard "
            "output.",
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare results of succeeded jobs.

    Sizes, perplexity, tasks and speed; of a job of several sizes, each of them.
    """
    with failures(as_json), connect(url) as client:
        ids = list(dict.fromkeys(client.find(job) for job in jobs))
        results = [each for job in ids for each in results_of(job, client.report(job))]
        if csv_file is not None:
            _write_csv(results, csv_file)
        elif as_json:
            print_json([each.as_dict() for each in results])
        else:
            show_results(results)
        if not perplexities_compare(results):
            show_warnings(
                ["Perplexities are not of one model on one text: compare each with its own ratio."]
            )


def show_results(results: Sequence[Result]) -> None:
    """Print a line for each result, without columns that none has a value in."""
    rows = [
        {
            "job": each.job,
            "size": each.size,
            "model": short_name(each.model),
            "removed": figures.percent(each.sparsity_reached),
            "parameters": figures.count(each.parameters_after),
            "checkpoint": figures.size(each.bytes_after),
            "perplexity": _number(each.perplexity_after),
            "ratio": _number(each.perplexity_ratio),
            "tasks kept": ""
            if each.task_retention is None
            else figures.percent(each.task_retention),
            "decode": "" if each.decode_gain is None else f"x {figures.number(each.decode_gain)}",
            "time": figures.duration(each.seconds),
        }
        for each in results
    ]
    if rows:
        print_records(
            rows, right=[name for name in rows[0] if name not in ("job", "size", "model")]
        )
    else:
        stderr.print("None of these jobs has published a result.")


def _number(value: float | None) -> str:
    return "" if value is None else figures.number(value)


def _write_csv(results: Sequence[Result], name: str) -> None:
    """Write results as CSV (RFC 4180), whose first line has the names.

    Raises:
        InvalidSpec: the file cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [field.name for field in fields(Result)])
    table.writeheader()
    table.writerows(each.as_dict() for each in results)
    if name == "-":
        sys.stdout.write(text.getvalue())
        return
    path = local_path(name, "--csv")
    write_file(path, text.getvalue(), "--csv")
    stderr.print(f"{len(results)} results in {path}", markup=False, highlight=False, soft_wrap=True)
