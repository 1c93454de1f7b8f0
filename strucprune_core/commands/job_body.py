"""The specification of a job from a file and the options beside it. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from strucprune_core.commands.console import local_path
from strucprune_core.commands.job_options import OPTIONS, Path_, option_of
from strucprune_core.errors import InvalidSpec
from strucprune_core.plain_errors import wrong_and_cure
from strucprune_core.plan.device_table import DeviceTable, parse_table, shipped_tables
from strucprune_core.spec import JobSpec, Unfit


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
        raise _refused(error.errors(include_url=False)) from None


# What to give for a field that every job needs.
_TO_GIVE: dict[Path_, str] = {
    ("model", "uri"): "Name a directory, s3://bucket/prefix or hf://org/name.",
    ("output", "uri_prefix"): "Name an empty directory, or s3://bucket/prefix.",
    ("pruning", "sparsity"): "Give it a fraction, such as 0.3, or use another option that says how "
    "much to remove: --help lists them.",
    ("calibration", "uri"): "Name a text, or use self: text that the model writes.",
}


def _missing(path: Path_) -> InvalidSpec:
    name = "MODEL" if path == ("model", "uri") else option_of(path) or ".".join(path)
    remedy = _TO_GIVE.get(path, f"Give {name}.")
    return InvalidSpec(f"{name} is missing", field=".".join(path), remedy=remedy)


def _has_no_text(calibration: object) -> bool:
    """Whether a calibration that was refused lacks the text that it reads."""
    return (
        isinstance(calibration, dict)
        and calibration.get("source", "file") == "file"
        and calibration.get("uri") is None
    )


def _refused(errors: Sequence[ErrorDetails]) -> InvalidSpec:
    # A name that is misspelt is both unknown and missing: the unknown one says more.
    first = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    path = tuple(str(part) for part in first["loc"])
    field = ".".join(path)
    if path == ("calibration",) and _has_no_text(first["input"]):
        return _missing(("calibration", "uri"))
    if first["type"] == "missing":
        return _missing(path)
    wrong, cure = wrong_and_cure(first)
    given = first["input"]
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    cause = first.get("ctx", {}).get("error")
    mends = cause.mends_in(field) if isinstance(cause, Unfit) else ()
    return InvalidSpec(wrong + shown, field=field, remedy=cure, mends=mends)
