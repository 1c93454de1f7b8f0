"""Logging of the service's programs: lines for people, or JSON for machines.

This uses the standard library's logging, to which libraries log anyway. JSON lines also have the
ids of the job and the trace that they belong to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from api.jobs.instants import instant
from api.jobs.tracing import TRACEPARENT, trace_id

LogFormat = Literal["text", "json"]

_JOB_ID: ContextVar[str | None] = ContextVar("job_id", default=None)
_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, job_id, trace_id, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": instant(record.created, "milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "job_id": _JOB_ID.get(),
            "trace_id": trace_id(TRACEPARENT.get()),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in line.items() if value is not None})


def configure(log_format: LogFormat) -> None:
    """Send all log lines of this process to standard error, in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


@contextmanager
def about_job(job_id: str) -> Iterator[None]:
    """Give JSON log lines within this context the id of a job."""
    token = _JOB_ID.set(job_id)
    try:
        yield
    finally:
        _JOB_ID.reset(token)
