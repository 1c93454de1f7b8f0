"""Makes the chart's README from its template and the comments of values.yaml: `make chart`.

A comment that begins with `# --` describes the key below it, with all that the key holds. The
default that is printed is the key's value as YAML reads it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "strucprune"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_INDENT = 2


def described(lines: list[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Path and description of every described key, in order."""
    path: list[str] = []
    words: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith("# -- "):
            words = [text.removeprefix("# -- ")]
        elif text.startswith("#") and words:
            words.append(text.removeprefix("#").strip())
        elif match := _KEY.match(line):
            path = [*path[: len(match[1]) // _INDENT], match[2]]
            if words:
                yield tuple(path), " ".join(words)
            words = []


def default(values: Any, path: tuple[str, ...]) -> str:
    """The key's value as JSON, or a reference if it is too long for a table."""
    for name in path:
        values = values[name]
    text = json.dumps(values)
    return f"`{text}`" if len(text) <= 60 else "see values.yaml"


def readme() -> str:
    """The whole README."""
    source = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(source)
    rows = [
        f"| `{'.'.join(path)}` | {default(values, path)} | {words.replace('|', '/')} |"
        for path, words in described(source.splitlines())
    ]
    table = "\n".join(["| value | default | |", "|---|---|---|", *rows])
    template = (CHART / "README.md.in").read_text(encoding="utf-8")
    return template.replace("@VALUES@", table)


def main() -> None:
    """Print the README, or write it with `--write`."""
    if sys.argv[1:] == ["--write"]:
        (CHART / "README.md").write_text(readme(), encoding="utf-8")
    else:
        sys.stdout.write(readme())


if __name__ == "__main__":
    main()
