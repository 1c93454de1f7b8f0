"""The helper process: judges one job after another, with little memory and time for each.

    python -m api.inspection.helper DESCRIPTOR ROOM_BYTES CPU_SECONDS     (started by `inspectors`)

It parses files that may be hostile. So it holds no secrets, opens no files or connections of its
own, and is replaced when it has taken too much memory or time.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from api.inspection.channel import Channel, ChannelBroken
from api.inspection.remote_store import open_remote
from api.inspection.serving import MAX_READ_BYTES
from api.inspection.verdict import VerdictMessage, judge, judge_parts
from api.jobs.limits import TenantLimits
from strucprune_core.plan.partial import PartialJob
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.spec import JobSpec

# A helper that has grown by this much is replaced, so that its next job has its full allowance.
_KEPT_BYTES = 96 * 2**20
# Helpers give way to the API's own threads.
_NICENESS = 10


def main() -> None:
    """Judge jobs until the API closes the channel."""
    descriptor, room_bytes, cpu_seconds = map(int, sys.argv[1:])
    channel = Channel(socket.socket(fileno=descriptor), MAX_READ_BYTES)
    os.nice(_NICENESS)
    at_start = _address_space_bytes()
    limit = at_start + room_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        channel.send({"ready": True})
        while True:
            request, _ = channel.receive()
            _allow_seconds(cpu_seconds)
            reply = _answer(request, channel)
            grown = _address_space_bytes() - at_start
            channel.send({**reply, "spent": grown > _KEPT_BYTES})
    except ChannelBroken:
        return


def _answer(request: dict[str, Any], channel: Channel) -> dict[str, Any]:
    try:
        limits = TenantLimits.model_validate(request["limits"])
        opener, downloads = partial(open_remote, channel), request["task_downloads"]
        if request["complete"]:
            spec = JobSpec.model_validate(request["spec"])
            rates = {
                name: DeviceRates.model_validate(each) for name, each in request["rates"].items()
            }
            verdict = judge(spec, limits, opener, task_downloads=downloads, rates=rates)
        else:
            parts = PartialJob.model_validate(request["spec"])
            verdict = judge_parts(parts, limits, opener, task_downloads=downloads)
        return {"verdict": VerdictMessage.of(verdict).model_dump(mode="json")}
    except MemoryError:
        return {"over": "memory"}
    except ChannelBroken:
        raise
    except Exception:
        # A bug of ours. The API logs it, and the helper goes on.
        return {"failure": traceback.format_exc(limit=-20)}


def _allow_seconds(seconds: int) -> None:
    """Make the kernel end this process after this much more processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1 + seconds, hard))


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
