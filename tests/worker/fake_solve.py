"""A stand-in for `worker.solve`: speaks its protocol, does what its argument says.

Run as a script, so it imports nothing of the project and starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

SUMMARY = {"sparsity": {"requested": 0.3, "reached": 0.3}}
FINAL = {"code": "invalid_checkpoint", "message": "no", "retryable": False}
RETRYABLE = {"code": "storage_unavailable", "message": "not now", "retryable": True}
NO_SCRATCH = {"code": "scratch_unavailable", "message": "no space left", "retryable": True}
STOPPED = 75


class Terminated(Exception):
    """SIGTERM came."""


class Termination:
    """Notes SIGTERM. Raising in the handler itself could cut a message in two."""

    requested = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def say(kind: str, /, **content: Any) -> None:
    print(json.dumps({"type": kind, **content}), flush=True)


def progress(done: int = 1) -> None:
    fields = {"phase": "solving", "layers_done": done, "layers_total": 4, "fraction": done / 4}
    say("progress", progress={**fields, "eta_seconds": None, "unit": "solve.7"})


def work(termination: Termination) -> NoReturn:
    done = 0
    say("device", device="a device", threads=3)
    while not termination.requested:
        progress(done % 5)
        done += 1
        time.sleep(0.02)
    raise Terminated


def claim() -> dict[str, Any]:
    say("reserve", ready=["curve.0", "curve.1", "curve.2"])
    answer: dict[str, Any] = json.loads(sys.stdin.readline())
    return answer


def share(part: str) -> None:
    """Ask for a unit three times, and say what the answer was."""
    say("log", at=1000.0, level="INFO", message=f"asked as {part}")
    for _ in range(3):
        answer = claim()
        say("log", at=1000.0, level="INFO", message=str(answer["unit"]))
        unit = {"name": answer["unit"], "kind": "curve", "began_at": 1000.0, "seconds": 2.5}
        peaks = {"host_peak_bytes": 3 * 2**30, "device_peak_bytes": None}
        say("unit", **unit, **peaks, read_bytes=10, written_bytes=4)


def main(behaviour: str) -> int:
    request = json.loads(sys.stdin.readline())
    termination = Termination()
    signal.signal(signal.SIGTERM, termination.note)
    try:
        return act(behaviour, request, termination)
    except Terminated:
        if behaviour == "finish-when-terminated":
            say("result", summary=SUMMARY)
            return 0
        if behaviour == "fail-when-terminated":
            say("error", error=FINAL)
            return 1
        return STOPPED


def act(behaviour: str, request: dict[str, Any], termination: Termination) -> int:
    match behaviour:
        case "succeed":
            progress()
            unit = {"name": "curve.3", "kind": "curve", "began_at": 1000.0, "seconds": 2.5}
            peaks = {"host_peak_bytes": 3 * 2**30, "device_peak_bytes": None}
            say("unit", **unit, **peaks, read_bytes=10, written_bytes=4)
            say("result", summary=SUMMARY)
        case "lead":
            share(request["part"])
            say("result", summary=SUMMARY)
        case "help":
            share(request["part"])
        case "claim-on":
            while claim()["go"]:
                time.sleep(0.05)
            return STOPPED
        case "hang-claimed" | "silent-claimed":
            claim()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        case "echo":
            found = [path.name for path in Path(request["scratch"]).iterdir()]
            say("result", summary={"request": request, "scratch": found})
        case "babble":
            print("a library prints this")
            print("{}", flush=True)
            say("result", summary=SUMMARY)
        case "fail":
            say("error", error=FINAL)
            return 1
        case "fail-for-now":
            say("error", error=RETRYABLE)
            return 1
        case "write":
            try:
                (Path(request["scratch"]) / "file").write_bytes(bytes(8192))
            except OSError:
                say("error", error=NO_SCRATCH)
                return 1
            say("result", summary=SUMMARY)
        case "no-scratch":
            say("error", error=NO_SCRATCH)
            return 1
        case "lose-scratch":
            inside = Path(request["scratch"])
            ours = [path for path in (inside, *inside.parents) if "strucprune-scratch" in path.name]
            shutil.rmtree(ours[0].parent)
            say("error", error=NO_SCRATCH)
            return 1
        case "exit":
            progress(2)
            return 3
        case "stopped-by-another":
            os.kill(os.getpid(), signal.SIGTERM)
            work(termination)
        case "terminated-early":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        case "killed":
            progress(2)
            os.kill(os.getpid(), signal.SIGKILL)
        case "silent":
            progress()
            while not termination.requested:
                time.sleep(0.01)
            raise Terminated
        case "deaf":
            progress()
            time.sleep(60)
        case "out-of-memory":
            say("error", error={**RETRYABLE, "code": "out_of_memory"})
            return 1
        case "log":
            for number in range(3):
                say("log", at=1000.0 + number, level="INFO", message=f"solve.{number} finished")
            say("error", error=RETRYABLE)
            return 1
        case "tell-layers":
            say("layers", layers={"index": [0, 1], "width_after": [5, 7]})
            say("layers", layers={"index": [1], "reconstruction_error": [0.25]})
            work(termination)
        case "tell-layers-and-fail":
            say("layers", layers={"index": [0], "energy": [0.5]})
            say("error", error=RETRYABLE)
            return 1
        case "hang":
            time.sleep(60)
        case "ignore-terminate":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            work(termination)
        case _ if behaviour.startswith("stop-once:"):
            # Told to stop, it does so only once that file is there.
            progress()
            while not (
                termination.requested and Path(behaviour.removeprefix("stop-once:")).exists()
            ):
                time.sleep(0.01)
            raise Terminated
        case _:
            work(termination)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
