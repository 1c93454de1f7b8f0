"""What a supervisor and its solve say to each other: a request in, then a message in each line.

Where several workers serve the job, the solve asks before each unit, and gets a line in answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from api.jobs.logs import LogFormat
from strucprune_core.spec import JobSpec

# Exit statuses of a solve. 75 is EX_TEMPFAIL of <sysexits.h>: nothing is wrong, try again later.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 75


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Part):
    """What a solve is to do. Credentials are not in it: they come with the environment.

    Attributes:
        part: Whether the solve does the job `alone`, may have helpers (`lead`), or is one (`help`).
        traceparent: The attempt's span, for log lines.
    """

    job_id: str
    spec: JobSpec
    workspace_uri: str
    scratch: str
    part: Literal["alone", "lead", "help"] = "alone"
    traceparent: str | None = None
    log_format: LogFormat = "text"


class ProgressMessage(_Part):
    """How far the solve is: `Progress.as_dict()`."""

    type: Literal["progress"] = "progress"
    progress: dict[str, Any]


class ResultMessage(_Part):
    """The solve has published its result."""

    type: Literal["result"] = "result"
    summary: dict[str, Any]


class ErrorMessage(_Part):
    """The solve has failed: `StrucPruneError.as_dict()`."""

    type: Literal["error"] = "error"
    error: dict[str, Any]


class LogMessage(_Part):
    """A line for the user's log; see `log_lines`."""

    type: Literal["log"] = "log"
    at: float
    level: str
    message: str


class UnitMessage(_Part):
    """A unit of work is done (`FinishedUnit`); bytes moved since the last one."""

    type: Literal["unit"] = "unit"
    name: str
    kind: str
    began_at: float
    seconds: float
    host_peak_bytes: int | None
    device_peak_bytes: int | None
    read_bytes: int
    written_bytes: int


class LayersMessage(_Part):
    """What was found out about layers: `layer_news.as_columns()`."""

    type: Literal["layers"] = "layers"
    layers: dict[str, Any]


class ClaimMessage(_Part):
    """The solve would do one of these units now, or has none; it waits for an `Answer`.

    Attributes:
        keeping: One that it was given before and is still storing.
    """

    type: Literal["claim"] = "claim"
    ready: list[str]
    keeping: str | None = None


class Answer(_Part):
    """Which unit to do.

    Attributes:
        go: False: there is no more work for this solve.
        unit: None: others have all; ask again later.
    """

    go: bool
    unit: str | None = None


Message = Annotated[
    ProgressMessage
    | ResultMessage
    | ErrorMessage
    | LogMessage
    | UnitMessage
    | LayersMessage
    | ClaimMessage,
    Field(discriminator="type"),
]


def parse_message(line: bytes) -> Message:
    """One line of a solve's output.

    Raises:
        pydantic.ValidationError: it is no message.
    """
    adapter: TypeAdapter[Message] = TypeAdapter(Message)
    return adapter.validate_json(line)
