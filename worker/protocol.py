"""The messages between a supervisor and its solve: a request in, then one message in each line out.

Where several workers serve the job, the solve asks before each unit, and now and then while it
waits for another worker's; it reads a line in answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from api.jobs.logs import LogFormat
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.spec import JobSpec

# Exit statuses of a solve. 75 is EX_TEMPFAIL of <sysexits.h>: try again later.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 75


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Part):
    """What a solve is to do. It holds no credentials: they are in the environment.

    Attributes:
        part: Whether the solve does the job `alone`, may get helpers (`lead`), or is one (`help`).
        traceparent: The span of the attempt, for log lines.
        task_downloads: Whether data of tasks may come from a hub.
        rates: Of the device, as the worker measured them when it started; None: it could not.
    """

    job_id: str
    spec: JobSpec
    workspace_uri: str
    scratch: str
    part: Literal["alone", "lead", "help"] = "alone"
    traceparent: str | None = None
    log_format: LogFormat = "text"
    task_downloads: bool = False
    rates: DeviceRates | None = None


class ProgressMessage(_Part):
    """Progress of the solve: `Progress.as_dict()`."""

    type: Literal["progress"] = "progress"
    progress: dict[str, Any]


class DeviceMessage(_Part):
    """What the solve computes with: the device as PyTorch names it, and its threads."""

    type: Literal["device"] = "device"
    device: str
    threads: int


class ResultMessage(_Part):
    """The solve has published its result."""

    type: Literal["result"] = "result"
    summary: dict[str, Any]


class ErrorMessage(_Part):
    """The solve has failed: `StrucPruneError.as_dict()`."""

    type: Literal["error"] = "error"
    error: dict[str, Any]


class LogMessage(_Part):
    """A line for the job's log; see `log_lines`."""

    type: Literal["log"] = "log"
    at: float
    level: str
    message: str


class UnitMessage(_Part):
    """A unit is finished (`FinishedUnit`), with the bytes moved since the unit before."""

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
    """Results for single layers: `layer_updates.as_columns()`."""

    type: Literal["layers"] = "layers"
    layers: dict[str, Any]


class ReserveMessage(_Part):
    """The solve could do one of these units now, perhaps none. It waits for an `Answer`.

    Attributes:
        ready: The units, in the order of its preference.
        keeping: A unit reserved before that is still being stored.
    """

    type: Literal["reserve"] = "reserve"
    ready: list[str]
    keeping: str | None = None


class HeldMessage(_Part):
    """The solve asks which units workers have. It waits for a `Held`."""

    type: Literal["held"] = "held"


class Held(_Part):
    """The units that workers have.

    Attributes:
        go: Whether the solve goes on; else it ends.
        units: Their names; None if that cannot be told now.
    """

    go: bool
    units: list[str] | None = None


class Answer(_Part):
    """Which unit the solve is to do.

    Attributes:
        go: Whether the solve goes on; else it ends.
        unit: The unit; None if others hold all of them, then the solve asks again later.
    """

    go: bool
    unit: str | None = None


Message = Annotated[
    ProgressMessage
    | DeviceMessage
    | ResultMessage
    | ErrorMessage
    | LogMessage
    | UnitMessage
    | LayersMessage
    | ReserveMessage
    | HeldMessage,
    Field(discriminator="type"),
]


def parse_message(line: bytes) -> Message:
    """One line of a solve's output.

    Raises:
        pydantic.ValidationError: the line is no message.
    """
    adapter: TypeAdapter[Message] = TypeAdapter(Message)
    return adapter.validate_json(line)
