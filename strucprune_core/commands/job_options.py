"""The options of commands that take a job, made from the fields of `JobSpec`. No torch.

Names, defaults and help come from the fields, so that the command, REST and Python cannot differ.
An option that is not given is left out of the specification, whose own default then holds.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
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
# Where the command says more than the field.
_HELP: dict[Path_, str] = {
    ("calibration", "uri"): "Text (UTF-8), JSON lines or parquet; or `self`, text that the model "
    "writes (a file of that name is ./self).",
    ("pruning", "recover", "steps"): "Steps of training for each pruned layer; 0 leaves it out. "
    "[default: 0]",
    (
        "pruning",
        "distill",
        "steps",
    ): "Steps of a last training of the whole model; 0 leaves it out. [default: 0]",
}
# Numbers that people write with a unit, which the field itself understands: "120M".
_AS_TEXT: frozenset[Path_] = frozenset({("pruning", "target", "parameters")})
# Set by `--calibration self`.
_NO_OPTION: frozenset[Path_] = frozenset({("calibration", "source")})
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

    def as_parameter(self) -> inspect.Parameter:
        """The option as a parameter of a command: None where it is not given."""
        negative = f"/--no-{self.name}" if self.kind is bool else ""
        option = typer.Option(
            f"--{self.name}{negative}",
            help=_HELP.get(self.path) or f"{self.field.description}{self._default()}",
            metavar=self._metavar(),
            show_default=False,
        )
        return keyword(self.parameter, Annotated[self._type() | None, option], None)

    def _type(self) -> Any:
        """The type that the command line's text is turned into."""
        if self.is_list:
            return list[str]
        plain = self.kind in (bool, int, float) and not self.is_size
        plain = plain and self.path not in _AS_TEXT
        return self.kind if plain else str

    def _default(self) -> str:
        """The default as help shows it, if there is one to show."""
        default = self.field.get_default(call_default_factory=True, validated_data={})
        if self.field.is_required() or default is None or default in ({}, ()):
            return ""
        shown = ", ".join(default) if isinstance(default, tuple) else default
        return f" [default: {shown}]"

    def _metavar(self) -> str | None:
        kind = self.kind
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            return "[" + "|".join(get_args(kind)) + "]"
        if get_origin(kind) is dict:
            return "NAME=VALUE" if self.path == ("labels",) else "LAYER=SHARE"
        if self.path in _AS_TEXT:
            return "NUMBER"
        return "SIZE" if self.is_size else None

    def value(self, given: Any) -> Any:
        """What the field is set to.

        Raises:
            InvalidSpec: it is not a size, or not NAME=VALUE.
        """
        if self.is_size:
            return _size(given, f"--{self.name}")
        if get_origin(self.kind) is dict:
            return dict(_pair(each, f"--{self.name}") for each in given)
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
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from _fields(kind, here)
        elif here not in _NO_OPTION:
            yield JobOption(here, field, kind)


OPTIONS = tuple(_fields(JobSpec))
"""All of them, in the order of the specification; the first is the model."""


def keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter of a command, by keyword."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


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
