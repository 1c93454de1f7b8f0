"""The file of results: what a part has found is in it as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["running", "done", "failed", "time limit"]
Keep = Callable[[dict[str, Any]], None]
"""Takes all that a part has found so far."""


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON file that is whole at every moment. One process at a time writes it."""

    path: Path

    def begin(self, about: dict[str, Any]) -> None:
        """Start anew."""
        self._write({**about, "parts": {}})

    def read(self) -> dict[str, Any]:
        """All of it."""
        content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return content

    def update(self, part: str, **fields: Any) -> None:
        """Set some fields of a part."""
        content = self.read()
        content["parts"].setdefault(part, {}).update(fields)
        self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(whole, self.path)  # noqa: PTH105 - one step
