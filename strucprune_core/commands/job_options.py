"""The options of commands that take a job, made from the fields of `JobSpec`. No torch.

Names, defaults and help come from the fields, so that the command, REST and Python cannot differ.
An option that is not given is left out of the specification, whose own default then holds.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ByteSize, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from strucprune_core.commands.console import local_path
from strucprune_core.errors import InvalidSpec
from strucprune_core.plan.device_table import DeviceTable, parse_table, shipped_tables
from strucprune_core.spec import JobSpec, Unfit

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
    ("pruning", "target", "device"): "Of --target-speedup: a table of the package "
    f"({', '.join(shipped_tables())}), or a file of bench-device.",
    (
        "pruning",
        "distill",
        "steps",
    ): "Steps of a last training of the whole model; 0 leaves it out. [default: 0]",
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

    def as_parameter(self) -> inspect.Parameter:
        """The option as a parameter of a command: None where it is not given."""
        negative = f"/--no-{self.name}" if self.kind is bool else ""
        option = typer.Option(
            f"--{self.name}{negative}",
            help=_HELP.get(self.path) or f"{self.field.description}{self._default()}",
            metavar=self._metavar(),
            show_default=False,
        )
        return _keyword(self.parameter, Annotated[self._type() | None, option], None)

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
        if here in _NO_OPTION:
            continue
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from _fields(kind, here)
        else:
            yield JobOption(here, field, kind)


OPTIONS = tuple(_fields(JobSpec))
"""All of them, in the order of the specification; the first is the model."""


JobBody = Callable[[], dict[str, Any]]
"""Reads the specification that a command was given; may raise `InvalidSpec`."""


def takes_job(*, service: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a model and the options of a job; it gets a `body: JobBody` of them.

    Args:
        service: Whether the job is for a service. Then there are options for what only a service
            uses, and the argument is a specification's file; else the argument is the model.
    """
    options = [option for option in OPTIONS if service or not option.for_services]
    shared = [option.as_parameter() for option in options]
    if not service:
        shared[0] = shared[0].replace(annotation=Annotated[str | None, _MODEL_ARGUMENT])
    spec_annotation = Annotated[str | None, _SPEC_ARGUMENT if service else _SPEC_OPTION]
    shared.append(_keyword("spec", spec_annotation, None))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*, spec: str | None, **given: Any) -> None:
            values = {option.path: given.pop(option.parameter) for option in options}
            command(body=lambda: job_body(spec, values), **given)

        hints = get_type_hints(command, include_extras=True)
        own = [
            _keyword(each.name, hints[each.name], each.default)
            for each in inspect.signature(command).parameters.values()
            if each.name != "body"
        ]
        # Typer reads options off a function's signature, so this one is put together here.
        run.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in (*shared, *own)}
        return run

    return decorate


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


_MODEL_ARGUMENT = typer.Argument(metavar="MODEL", show_default=False)
_SPEC_HELP = "The job as JSON, as REST takes it; - reads standard input. Options go before it."
_SPEC_OPTION = typer.Option("--spec", metavar="FILE", help=_SPEC_HELP)
_SPEC_ARGUMENT = typer.Argument(metavar="SPEC", show_default=False, help=_SPEC_HELP)


def job_body(spec: str | None, given: dict[Path_, Any]) -> dict[str, Any]:
    """The specification of a file and of the options given beside it.

    Args:
        spec: Name of a JSON file, or "-"; None for no file.
        given: Values of options by field; None where an option is not given.

    Raises:
        InvalidSpec: the file cannot be read, or an option's value.
    """
    body = read_spec(spec) if spec is not None else {}
    for option in OPTIONS:
        value = given.get(option.path)
        if value is not None:
            _section(body, option.path)[option.path[-1]] = option.value(value)
    for name in ("model", "output", "pruning", "calibration"):
        body.setdefault(name, {})
    return _without_zeros(_with_device_table(_self_calibrated(body, given), given))


def _section(body: dict[str, Any], path: Path_) -> dict[str, Any]:
    for name in path[:-1]:
        if not isinstance(body.get(name), dict):
            body[name] = {}
        body = body[name]
    return body


def _self_calibrated(body: dict[str, Any], given: dict[Path_, Any]) -> dict[str, Any]:
    """`--calibration` names the source `self`, or a file, whichever the specification had."""
    text = given.get(("calibration", "uri"))
    if text is not None:
        body["calibration"]["source"] = "self" if text == "self" else "file"
    if text == "self":
        del body["calibration"]["uri"]
    return body


def _with_device_table(body: dict[str, Any], given: dict[Path_, Any]) -> dict[str, Any]:
    """`--target-device` names a table of the package, or a file whose table the job then brings.

    Raises:
        InvalidSpec: there is neither, or the file holds no table.
    """
    device = given.get(("pruning", "target", "device"))
    if device is None:
        return body
    target = body["pruning"]["target"]
    target.pop("device_table", None)
    if device in shipped_tables():
        return body
    del target["device"]
    target["device_table"] = _device_table(device).model_dump(mode="json")
    return body


def _device_table(name: str) -> DeviceTable:
    path = local_path(name, "--target-device")
    if not path.exists():
        raise InvalidSpec(
            f"'{name}' is neither a file nor a table of the package",
            field="--target-device",
            remedy=f"Measure a file with strucprune bench-device, or use one of "
            f"{', '.join(shipped_tables())}.",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(
            f"cannot read {name}: {error}",
            field="--target-device",
            remedy="Use a file that strucprune bench-device wrote.",
        ) from error
    return parse_table(text, name)


def _without_zeros(body: dict[str, Any]) -> dict[str, Any]:
    """`--recover-steps 0` and `--distill-steps 0` leave a training out."""
    pruning = body["pruning"]
    if isinstance(pruning, dict):
        for name in ("recover", "distill"):
            if isinstance(pruning.get(name), dict) and pruning[name].get("steps") == 0:
                del pruning[name]
    return body


def read_spec(name: str) -> dict[str, Any]:
    """A JSON object from a file, or from standard input for "-".

    Raises:
        InvalidSpec: the file cannot be read, or holds something else.
    """
    try:
        text = sys.stdin.read() if name == "-" else local_path(name).read_text(encoding="utf-8")
        body = json.loads(text)
    except OSError as error:
        raise InvalidSpec(
            f"cannot read {name}: {error.strerror}", remedy="Check its name and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"{name} is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidSpec(
            f"{name} does not hold a JSON object",
            remedy="Write the job as REST takes it, as one object.",
        )
    return body


def parse_spec(body: dict[str, Any]) -> JobSpec:
    """The specification, checked.

    Raises:
        InvalidSpec: with the first field that is wrong; one that is missing is named as an option.
    """
    try:
        return JobSpec.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = tuple(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise InvalidSpec(f"{_option_of(path)} is missing", field=".".join(path)) from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        cause, where = first.get("ctx", {}).get("error"), ".".join(path)
        mends = cause.mends_in(where) if isinstance(cause, Unfit) else ()
        raise InvalidSpec(message + given, field=where, mends=mends) from None


def _option_of(path: Path_) -> str:
    if path == ("model", "uri"):
        return "MODEL"
    names = [f"--{option.name}" for option in OPTIONS if option.path == path]
    return names[0] if names else ".".join(path)


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
