"""The options of commands that take a job, made from the fields of `JobSpec`. No torch.

Names, defaults and help come from the fields, so that the command, REST and Python cannot differ.
An option that is not given is left out of the specification, whose own default then holds.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from strucprune_core.errors import InvalidSpec
from strucprune_core.spec import JobSpec

Path_ = tuple[str, ...]
"""The place of a field in the specification: ("pruning", "recover", "steps")."""

# Before the names of a section's fields; those of `pruning` stand alone.
_PREFIXES: dict[Path_, str] = {
    ("evaluation",): "evaluation-",
    ("pruning", "target"): "target-",
    ("pruning", "recover"): "recover-",
    ("pruning", "distill"): "distill-",
}
# Options whose names do not follow from their fields'.
_NAMES: dict[Path_, str] = {
    ("model", "uri"): "model",
    ("model", "adapter_uri"): "adapter",
    ("output", "uri_prefix"): "output",
    ("pruning", "structures"): "structure",
    ("pruning", "exports"): "export",
    ("pruning", "sizes"): "size",
    ("calibration", "uri"): "calibration",
    ("calibration", "format"): "calibration-format",
    ("calibration", "field"): "calibration-field",
    ("evaluation", "uri"): "evaluation",
    ("evaluation", "max_perplexity_ratio"): "max-perplexity-ratio",
    ("evaluation", "prompts"): "prompt",
    ("evaluation", "sample_tokens"): "sample-tokens",
    ("evaluation", "speed"): "measure-speed",
    ("evaluation", "tasks"): "task",
    ("evaluation", "task_files"): "task-files",
    ("evaluation", "limit"): "task-limit",
    ("evaluation", "num_fewshot"): "num-fewshot",
    ("evaluation", "min_task_retention"): "min-task-retention",
    ("labels",): "label",
}
# Numbers that people write with a unit, which the field itself understands: "120M".
_AS_TEXT: frozenset[Path_] = frozenset({("pruning", "target", "parameters")})
# Set by `--calibration self`, and by `--target-device FILE`.
_NO_OPTION: frozenset[Path_] = frozenset(
    {("calibration", "source"), ("pruning", "target", "device_table")}
)
# Only a service uses them.
_OF_A_SERVICE = ("priority", "deadline_seconds", "max_attempts", "max_workers", "labels")


@dataclass(frozen=True)
class JobOption:
    """One option.

    Attributes:
        path: The field that it sets.
        field: Its definition.
        kind: Its type, without None.
    """

    path: Path_
    field: FieldInfo
    kind: Any

    @property
    def name(self) -> str:
        """The option without its dashes: "recover-steps"."""
        if self.path in _NAMES:
            return _NAMES[self.path]
        prefix = _PREFIXES.get(self.path[:-1], "")
        return prefix + self.path[-1].removesuffix("_bytes").replace("_", "-")

    @property
    def parameter(self) -> str:
        """Its name in a function's signature."""
        return "job_" + self.name.replace("-", "_")

    @property
    def is_list(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.kind) in (tuple, dict)

    @property
    def is_size(self) -> bool:
        """Whether it is given in bytes: "2GiB"."""
        return self.path[-1].endswith("bytes")

    @property
    def for_services(self) -> bool:
        """Whether only a service uses it."""
        return self.path[-1] in _OF_A_SERVICE

    def value(self, given: Any) -> Any:
        """What the field is set to.

        Raises:
            InvalidSpec: it is not a size, or not NAME=VALUE.
        """
        if self.is_size:
            return _size(given, f"--{self.name}")
        if get_origin(self.kind) is dict:
            return dict(_pair(each, f"--{self.name}") for each in given)
        if self.kind in (int, float) and self.path not in _AS_TEXT:
            return _number(given, self.kind)
        return given


def _without_none(annotation: Any) -> Any:
    """A type without `| None` and without its constraints."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(annotation) if each is not type(None))
        return _without_none(kind)
    return annotation


def _fields(model: type[BaseModel], path: Path_ = ()) -> Iterator[JobOption]:
    for name, field in model.model_fields.items():
        kind = _without_none(field.annotation)
        here = (*path, name)
        if here in _NO_OPTION:
            continue
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from _fields(kind, here)
        else:
            yield JobOption(here, field, kind)


OPTIONS = tuple(_fields(JobSpec))
"""All of them, in the order of the specification; the first is the model."""


_BY_PATH = {option.path: option for option in OPTIONS}


def option_of(path: Path_) -> str | None:
    """The option that sets a field, with its dashes; None where there is none."""
    found = _BY_PATH.get(path)
    return None if found is None else f"--{found.name}"


def _number(text: str, kind: type[int] | type[float]) -> int | float | str:
    """The number, or the text itself, which the specification then refuses."""
    try:
        return kind(text)
    except ValueError:
        return text


def _size(text: str, option: str) -> int:
    """Bytes of "2GiB", "500MB" or a plain number."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise InvalidSpec(
            f"'{text}' is not a size", field=option, remedy='Write it as "2GiB" or "500MB".'
        ) from None


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidSpec(f"'{text}' lacks an =", field=option, remedy="Write it as NAME=VALUE.")
    return name, value
