"""Writes runs to an MLflow server, so that a repetition completes what is there.

MLflow has no way to create a run only if there is none. So a run gets its job's id as it is
created, and is searched for before and after that: if two processes have created one each, both
keep the same one and delete the other. A run has ended in MLflow once all of it is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from api.mlflow.content import JOB_ID, RUN, SIZE, RunContent
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.report.document import REPORT_HTML

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# For connecting, and for each pause between bytes of an answer.
_TIMEOUT_SECONDS = 10
# What a request may hold at most.
_PARAMS_OR_TAGS = 100
_METRICS = 500
_PARENT = "mlflow.parentRunId"
_ENDED = ("FINISHED", "FAILED", "KILLED")
# Another try of the same request is useless for a while, but other jobs need not wait.
_REJECTED = (400, 409, 413, 422)
# In front of a report's page, which lies in the tenant's bucket and may have been replaced. MLflow
# shows it to its users, so it gets no scripts and no requests.
_POLICY = (
    b'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    b"style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n"
)

Read = Callable[[str], bytes | None]
"""A document under the job's output; None if it is gone, or not what a job writes."""


class NotLogged(Exception):
    """MLflow did not take a run.

    Attributes:
        rejected: Whether that is due to this run, so that others may be taken.
    """

    def __init__(self, reason: str, *, rejected: bool = False) -> None:
        super().__init__(reason)
        self.rejected = rejected


class MlflowServer:
    """An MLflow server, with the credentials that MLflow's own variables name.

    Args:
        uri: Its address, http or https.

    Raises:
        ImportError: MLflow's client is not installed.
    """

    def __init__(self, uri: str) -> None:
        _configure_client()
        from mlflow.tracking import MlflowClient

        self._uri = uri
        self._client: MlflowClient = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def log(
        self,
        experiment: str,
        contents: Sequence[RunContent],
        read: Read,
        check: Callable[[], None],
    ) -> None:
        """Write the run of a job, and below it those of its sizes. May be repeated.

        Args:
            experiment: Name of the experiment; made if there is none.
            contents: The job's run, then those of its sizes.
            read: Reads their documents.
            check: Called between requests; what it raises ends the call.

        Raises:
            NotLogged: the server did not take all of it.
        """
        job, *sizes = contents
        with _answering():
            place = self._experiment(experiment, check)
            parent = self._run(place, job, {}, check)
            if parent.info.status in _ENDED:
                return
            for size in sizes:
                below = {_PARENT: parent.info.run_id}
                self._complete(self._run(place, size, below, check), size, below, read, check)
            # Last: once it has ended, all is written.
            self._complete(parent, job, {}, read, check)

    def _experiment(self, name: str, check: Callable[[], None]) -> str:
        from mlflow.exceptions import MlflowException

        check()
        found = self._client.get_experiment_by_name(name)
        if found is None:
            check()
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # Another process may have created it meanwhile.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise NotLogged(
                f"the experiment {shown(name)} is deleted; restore it, or remove it for good",
                rejected=True,
            )
        return str(found.experiment_id)

    def _run(
        self,
        experiment_id: str,
        content: RunContent,
        below: Mapping[str, str],
        check: Callable[[], None],
    ) -> Run:
        """The run of this content; created if there is none."""
        found = self._found(experiment_id, content, check)
        if not found:
            check()
            self._client.create_run(
                experiment_id, start_time=content.started_ms, tags={**content.tags, **below}
            )
            found = self._found(experiment_id, content, check)
        if not found:
            raise NotLogged("a run that was created is not found", rejected=True)
        # One that has ended is complete. Otherwise all processes choose the same one.
        kept, *others = sorted(
            found, key=lambda run: (run.info.status not in _ENDED, run.info.run_id)
        )
        for other in others:
            check()
            self._client.delete_run(other.info.run_id)
        return kept

    def _found(
        self, experiment_id: str, content: RunContent, check: Callable[[], None]
    ) -> list[Run]:
        check()
        wanted = {JOB_ID: content.job_id, RUN: str(content.run), SIZE: content.size}
        # Ids of jobs and numbers hold no quotes. The size is compared here, since not all servers
        # can search for an empty tag.
        query = " and ".join(f"tags.`{tag}` = '{wanted[tag]}'" for tag in (JOB_ID, RUN))
        found = self._client.search_runs([experiment_id], query)
        return [run for run in found if run.data.tags.get(SIZE, "") == content.size]

    def _complete(
        self,
        run: Run,
        content: RunContent,
        below: Mapping[str, str],
        read: Read,
        check: Callable[[], None],
    ) -> None:
        """Write what the run does not have yet, and end it."""
        for batch in _missing(run, content, below):
            check()
            self._client.log_batch(run.info.run_id, **batch)
        if run.info.status in _ENDED:
            return  # All was there, unless the run above it is another one now.
        for key in content.documents:
            check()
            document = read(key)
            if document is not None:
                self._upload(run, key.rpartition("/")[2], document)
        check()
        status = "FAILED" if content.failed else "FINISHED"
        self._client.set_terminated(run.info.run_id, status, content.ended_ms)

    def _upload(self, run: Run, name: str, document: bytes) -> None:
        place = urlsplit(run.info.artifact_uri)
        # The location is the experiment's, and whoever created that has chosen it. Any other than
        # the server itself would be written with the credentials of this process.
        if place.scheme != "mlflow-artifacts" or place.netloc not in (
            "",
            urlsplit(self._uri).netloc,
        ):
            raise NotLogged(
                f"its artifacts go to {shown(place.scheme + ':')}, not through the server; let the "
                "server serve artifacts (mlflow-artifacts:)",
                rejected=True,
            )
        page = _POLICY if name == REPORT_HTML else b""
        with tempfile.TemporaryDirectory(prefix="strucprune-mlflow-") as folder:
            path = Path(folder) / name
            path.write_bytes(page + document)
            self._client.log_artifact(run.info.run_id, str(path))


def _missing(
    run: Run, content: RunContent, below: Mapping[str, str]
) -> Iterator[dict[str, Sequence[Any]]]:
    """What the run does not have yet, in batches that a request may hold."""
    from mlflow.entities import Metric, Param, RunTag

    has = run.data
    params = [Param(*each) for each in content.params.items() if each[0] not in has.params]
    tags = {**content.tags, **below}
    changed = [RunTag(*each) for each in tags.items() if has.tags.get(each[0]) != each[1]]
    metrics = [
        Metric(name, value, content.ended_ms, 0)
        for name, value in content.metrics.items()
        if name not in has.metrics
    ]
    for kind, found, most in (
        ("params", params, _PARAMS_OR_TAGS),
        ("tags", changed, _PARAMS_OR_TAGS),
        ("metrics", metrics, _METRICS),
    ):
        left = iter(found)
        while batch := [*islice(left, most)]:
            yield {kind: batch}


@contextmanager
def _answering() -> Iterator[None]:
    """Raise the client's failures as `NotLogged`."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise _not_logged(error, error.get_http_status_code()) from error
    except requests.RequestException as error:
        status = 503 if error.response is None else error.response.status_code
        raise _not_logged(error, status) from error


def _not_logged(error: Exception, status: int) -> NotLogged:
    # The cause stands at the end of a long text.
    return NotLogged(shown(str(error), 600), rejected=status in _REJECTED)


def _configure_client() -> None:
    """Set what MLflow's client reads from the environment when it is imported or called."""
    # It must not tell its makers that it is used.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Log lines have one format, and standard output has no others.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"
    # Whoever calls tries again later, also after a restart.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_SECONDS))
