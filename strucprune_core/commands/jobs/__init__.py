"""`strucprune jobs submit | list | watch ...`: jobs of a service. No torch.

Calls the service at STRUCPRUNE_URL with the key STRUCPRUNE_API_KEY.
"""

from __future__ import annotations

import typer

from strucprune_core.client.connection import KEY_VARIABLE, URL_VARIABLE
from strucprune_core.commands.jobs.control import cancel, delete, pause, resume, retry
from strucprune_core.commands.jobs.lists import list_jobs, show_job
from strucprune_core.commands.jobs.results import download, logs
from strucprune_core.commands.jobs.submit import submit
from strucprune_core.commands.jobs.watch import watch

app = typer.Typer(
    help=f"Jobs of a service, at {URL_VARIABLE} with the key {KEY_VARIABLE}.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command()(submit)
app.command(name="list")(list_jobs)
app.command(name="show")(show_job)
for command in (watch, cancel, pause, resume, retry, delete, logs, download):
    app.command()(command)
