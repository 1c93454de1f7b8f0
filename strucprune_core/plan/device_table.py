"""What a device needs for the parts of a forward pass: a document that is measured. No torch.

`strucprune bench-device` measures it (`evaluation.device_bench`), and `plan.latency` reads times of
whole models off it. A few tables are part of the package; a job may also bring its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from strucprune_core.errors import InvalidSpec

_FOLDER = Path(__file__).with_name("device_tables")
_MOST_ENTRIES = 32

Seconds = Annotated[float, Field(gt=0.0, lt=1e6)]
Steps = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**31)], ...],
    Field(min_length=1, max_length=_MOST_ENTRIES),
]
Row = Annotated[tuple[Seconds | None, ...], Field(max_length=_MOST_ENTRIES)]
Grid = Annotated[tuple[Row, ...], Field(max_length=_MOST_ENTRIES)]
Cube = Annotated[tuple[Grid, ...], Field(max_length=_MOST_ENTRIES)]

# What the day of a measurement is written like.
DATE = r"^\d{4}-\d{2}-\d{2}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PassTimes(_Strict):
    """Seconds of the parts of one kind of pass; null where a part was not measured."""

    sequences: int = Field(ge=1, le=2**16, description="Sequences at once.")
    tokens: int = Field(ge=1, le=2**24, description="New tokens of each sequence.")
    contexts: Steps = Field(description="Tokens of each sequence in the KV cache before the pass.")
    products: Grid = Field(description="A product with a matrix, by its inputs and its outputs.")
    layer: Row = Field(
        description="What a layer takes beside its attention and its FFN (norms, additions, "
        "calls), by hidden size."
    )
    activation: Row = Field(
        description="What a gated FFN takes beside its products, by its channels."
    )
    attention: Cube = Field(
        description="What attention takes beside its products (rotation, the KV cache, reading "
        "it), by context, by the width of all keys, and by query heads of a key-value head."
    )
    model: Row = Field(
        description="What a pass takes outside of layers, beside the product of the head, by "
        "hidden size."
    )


class DeviceTable(_Strict):
    """Seconds of the parts of forward passes on one device, measured by `bench-device`."""

    version: Literal[1] = 1
    device: str = Field(min_length=1, max_length=200, description="Its name and what runs on it.")
    kind: Literal["cpu", "cuda"]
    threads: int = Field(ge=1, le=4096, description="Of torch.")
    dtype: Literal["bfloat16", "float16", "float32"]
    runtime: str = Field(max_length=200, description="What the parts are of, with versions.")
    measured_on: str = Field(pattern=DATE, description="Date, UTC.")
    rounds: int = Field(ge=1, description="Times are medians of so many measurements.")
    spread: float = Field(
        ge=0.0, description="Half the range of their middle half, relative: the usual one."
    )
    widths: Steps = Field(description="Of inputs, outputs, channels, keys and hidden states.")
    groups: Steps = Field(description="Query heads of a key-value head.")
    decode: tuple[PassTimes, ...] = Field(
        min_length=1, max_length=8, description="One token of each sequence."
    )
    prefill: tuple[PassTimes, ...] = Field(
        max_length=8, description="A whole prompt, of which the last token alone passes the head."
    )

    @model_validator(mode="after")
    def _sizes_agree(self) -> DeviceTable:
        for name, steps in (("widths", self.widths), ("groups", self.groups)):
            _check_rising(name, steps, least=1)
        for times in (*self.decode, *self.prefill):
            _check_rising("contexts", times.contexts, least=0)
            for name, shape in self._shapes(times).items():
                if not _has_shape(getattr(times, name), shape):
                    sizes = " x ".join(str(size) for size in shape)
                    raise ValueError(f"{name} must hold {sizes} times")
        if any(times.tokens != 1 for times in self.decode):
            raise ValueError("decode passes have one token of each sequence")
        heads = {times.sequences for times in self.decode}
        if any(times.sequences not in heads for times in self.prefill):
            raise ValueError("a prefill pass needs a decode pass of as many sequences")
        return self

    def _shapes(self, times: PassTimes) -> dict[str, tuple[int, ...]]:
        widths = len(self.widths)
        return {
            "products": (widths, widths),
            "layer": (widths,),
            "activation": (widths,),
            "attention": (len(times.contexts), widths, len(self.groups)),
            "model": (widths,),
        }

    def sha256(self) -> str:
        """Digest (hex) of what the table says, however it is written."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _check_rising(name: str, steps: tuple[int, ...], *, least: int) -> None:
    if steps[0] < least or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{name} must rise, from {least} or more")


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(value) == shape[0] and all(_has_shape(each, shape[1:]) for each in value)


def shipped_tables() -> list[str]:
    """Names of the tables that are part of the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@cache
def shipped_table(name: str) -> DeviceTable:
    """A table of the package.

    Raises:
        InvalidSpec: there is none of this name.
    """
    if name not in shipped_tables():
        raise InvalidSpec(
            f"there is no table of a device named '{name}'",
            field="pruning.target.device",
            remedy=f"Use one of {', '.join(shipped_tables())}; or measure your device with "
            "strucprune bench-device, and give the file to --target-device, or what it holds as "
            "pruning.target.device_table.",
        )
    return parse_table((_FOLDER / f"{name}.json").read_text(encoding="utf-8"), name)


def parse_table(text: str, source: str) -> DeviceTable:
    """The table that a text holds.

    Args:
        text: JSON, as `bench-device` writes it.
        source: Where it comes from, for messages.

    Raises:
        InvalidSpec: it holds none.
    """
    try:
        return DeviceTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidSpec(
            f"{source} is no table of a device: {f'{place}: ' if place else ''}{reason}",
            field="pruning.target.device",
            remedy="Use a file that strucprune bench-device wrote.",
        ) from None
