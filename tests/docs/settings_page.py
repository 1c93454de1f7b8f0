"""The table of docs/settings.md, made of the settings classes and what they say of themselves.

python -m tests.docs.settings_page
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from api.settings import Settings as ApiSettings
from embedded.stack import ROOT
from strucprune_core.storage.s3_settings import S3Settings
from worker.settings import Settings as WorkerSettings

PAGE = ROOT / "docs/settings.md"
_TABLE = re.compile(r"(?<=<!-- made by python -m tests.docs.settings_page -->\n).*\n", re.DOTALL)
_ENTRY = re.compile(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", re.MULTILINE)


def attributes(kind: type) -> dict[str, str]:
    """What a class's docstring says of each attribute, on one line."""
    _, _, entries = (kind.__doc__ or "").partition("Attributes:\n")
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(entries)}


def table() -> str:
    """All variables, by name, with the programs that read them."""
    lines = ["| variable | read by | default | |", "|---|---|---|---|"]
    kinds: dict[str, type[BaseSettings]] = {"API": ApiSettings, "worker": WorkerSettings}
    for name in sorted({name for kind in kinds.values() for name in kind.model_fields} - {"s3"}):
        readers = {who: kind for who, kind in kinds.items() if name in kind.model_fields}
        first = next(iter(readers.values()))
        words = attributes(first)[name].replace("|", "\\|")
        readers_of = ", ".join(readers)
        lines.append(f"| `{variable(name)}` | {readers_of} | {_default(first, name)} | {words} |")
    lines += [
        f"| `{variable(f's3_{field.name}')}` | {', '.join(kinds)} | "
        f"{_shown(S3Settings.__dataclass_fields__[field.name].default)} | "
        f"{attributes(S3Settings).get(field.name, '')} |"
        for field in fields(S3Settings)
    ]
    return "\n".join(lines) + "\n"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"STRUCPRUNE_{name.upper()}"


def _default(kind: type[BaseSettings], name: str) -> str:
    field = kind.model_fields[name]
    if field.is_required():
        return "*required*"
    return _shown(field.get_default(call_default_factory=True))


def _shown(value: Any) -> str:
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    if value is None:
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def page() -> str:
    """The page with the table as it should be."""
    return _TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
