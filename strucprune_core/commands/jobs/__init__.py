"""`strucprune jobs submit | list | watch ...`: jobs of a service. No torch.

Calls the service at STRUCPRUNE_URL with the key STRUCPRUNE_API_KEY.
"""

from __future__ import annotations

import typer

from strucprune_core.client.connection import KEY_VARIABLE, URL_VARIABLE
from strucprune_core.commands.help import add_command
from strucprune_core.commands.jobs.compare import compare_jobs
from strucprune_core.commands.jobs.control import cancel, delete, pause, resume, retry
from strucprune_core.commands.jobs.extend import extend
from strucprune_core.commands.jobs.lists import list_jobs, show_job
from strucprune_core.commands.jobs.results import download, logs
from strucprune_core.commands.jobs.submit import submit
from strucprune_core.commands.jobs.usage import quota, workers
from strucprune_core.commands.jobs.watch import watch

app = typer.Typer(
    help="Submit, watch and control jobs of a service.\n\n"
    f"Set {URL_VARIABLE} to the service's URL, and {KEY_VARIABLE} to your key. A job is named by "
    "its id, or by at least four digits from its beginning.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

add_command(
    app,
    submit,
    "strucprune jobs submit s3://models/m --output s3://team/m-30 --sparsity 0.3 "
    "--calibration s3://team/text.txt",
    "strucprune jobs submit ./model --output s3://team/m-30 --sparsity 0.3 "
    "--calibration ./text.txt",
    "strucprune jobs submit --spec job.json --priority high --watch",
)
add_command(
    app,
    extend,
    "strucprune jobs extend job_3f2a --size 0.5 --output s3://team/m-further",
    "strucprune jobs extend job_3f2a --size 0.4 --size 0.5 --output s3://team/m-further --watch",
)
add_command(
    app,
    list_jobs,
    "strucprune jobs list --state running",
    "strucprune jobs list --label team=search --limit 10",
    name="list",
)
add_command(app, show_job, "strucprune jobs show job_3f2a", name="show")
add_command(app, watch, "strucprune jobs watch job_3f2a")
add_command(app, logs, "strucprune jobs logs job_3f2a")
add_command(
    app,
    download,
    "strucprune jobs download job_3f2a --to ./smaller",
    "strucprune jobs download job_3f2a --to ./sizes --size 0.3",
)
add_command(
    app,
    compare_jobs,
    "strucprune jobs compare job_3f2a job_77c0",
    "strucprune jobs compare job_3f2a job_77c0 --csv table.csv",
    name="compare",
)
add_command(app, cancel, "strucprune jobs cancel job_3f2a")
add_command(app, pause, "strucprune jobs pause job_3f2a")
add_command(app, resume, "strucprune jobs resume job_3f2a")
add_command(app, retry, "strucprune jobs retry job_3f2a")
add_command(app, delete, "strucprune jobs delete job_3f2a --outputs")
add_command(app, quota, "strucprune jobs quota")
add_command(app, workers, "strucprune jobs workers --json")
