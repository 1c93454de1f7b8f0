"""Which ends of jobs are done with, in the state store.

mlflow/{job_id}/{run}.json   how it was done with; written last, removed some time after its job
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from strucprune_core.storage.store import Store

_ROOT = "mlflow/"

Done = Literal["logged", "cancelled", "too_old"]


class Marks:
    """The marks of all jobs. Methods raise `StorageError` and its kinds."""

    def __init__(self, state: Store) -> None:
        self._state = state

    def exists(self, job_id: str, run: int) -> bool:
        """Whether the end of this run is done with."""
        return self._state.stat(_key(job_id, run)) is not None

    def write(self, job_id: str, run: int, done: Done) -> None:
        """Note that the end of this run is done with."""
        content = {"format_version": 1, "done": done}
        self._state.put(_key(job_id, run), json.dumps(content).encode())

    def remove(self, job_id: str, run: int) -> None:
        """Remove the mark of a job that is gone."""
        self._state.delete(_key(job_id, run))

    def all(self) -> Iterator[tuple[str, int]]:
        """Job and run of every mark."""
        for info in self._state.list(_ROOT):
            job_id, _, name = info.key.removeprefix(_ROOT).partition("/")
            number = name.removesuffix(".json")
            if number.isdecimal():
                yield job_id, int(number)


def _key(job_id: str, run: int) -> str:
    return f"{_ROOT}{job_id}/{run}.json"
