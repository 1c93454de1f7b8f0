"""Every command of the documentation, run as it stands there (see `pages`)."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedded.s3 import REGION
from embedded.stack import ROOT, Stack
from tests.docs.pages import PAGES, RUNNABLE, SETTINGS, Block, blocks

# Fails where curl alone would not: at an answer that is an error.
_CURL = "fail-with-body\n"
# Variables and functions of a block are there in the page's next one.
_SCRIPT = """\
set -euo pipefail
set -a
[ ! -e "$STATE" ] || . "$STATE"
{text}
{{ export -p; declare -f; }} > "$STATE"
"""
_TIMEOUT_SECONDS = 120


def _with_a_service(page: str) -> bool:
    return any(block.setting == "service" for block in blocks(page))


@pytest.mark.usefixtures("place", "one_thread")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.services if _with_a_service(page) else ())
        for page in PAGES
        if any(block.kind == "run" for block in blocks(page))
    ],
)
def test_what_a_page_says_works(
    page: str,
    commands: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl on the machine")
    home = tmp_path_factory.mktemp("home")
    (home / ".curlrc").write_text(_CURL, encoding="utf-8")
    service = request.getfixturevalue("service") if _with_a_service(page) else None
    for name, value in _environment(home, commands, service).items():
        monkeypatch.setenv(name, value)
    variables: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.kind == "run" and block.language == "python":
            printed = _run_python(block, variables)
        elif block.kind == "run":
            printed = _run_shell(block)
        elif block.kind == "prints":
            assert _says(printed, block.text), f"{block.place}: not so, but\n{printed}"


def _environment(home: Path, commands: Path, stack: Stack | None) -> dict[str, str]:
    """What the pages' shells know: with a service, what `make demo KEEP=1` prints."""
    known = {
        "HOME": str(home),
        "STATE": str(home / "variables"),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        "OMP_NUM_THREADS": "1",
    }
    if stack is None:
        return known
    return known | {
        "URL": stack.api_url,
        "KEY": stack.api_key,
        "STRUCPRUNE_URL": stack.api_url,
        "STRUCPRUNE_API_KEY": stack.api_key,
        "STRUCPRUNE_STATE_URI": stack.environment["STRUCPRUNE_STATE_URI"],
        "STRUCPRUNE_KEY_PEPPER": stack.environment["STRUCPRUNE_KEY_PEPPER"],
        "AWS_ENDPOINT_URL": stack.s3.endpoint_url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": stack.s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": stack.s3.secret_access_key,
    }


def _run_shell(block: Block) -> str:
    done = subprocess.run(
        ["bash", "-c", _SCRIPT.format(text=block.text)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    told = f"{block.place} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert (done.returncode != 0) == block.fails, told
    return done.stdout


def _run_python(block: Block, variables: dict[str, Any]) -> str:
    page, _, line = block.place.rpartition(":")
    # So that a traceback names the page's own lines.
    code = compile("\n" * int(line) + block.text, page, "exec")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, variables)
    return out.getvalue()


def _says(printed: str, expected: str) -> bool:
    """Whether what was printed is what was expected, white space aside; `…` is anything."""
    parts = ("".join(part.split()) for part in expected.split("…"))
    pattern = ".*".join(re.escape(part) for part in parts)
    return re.fullmatch(pattern, "".join(printed.split()), re.DOTALL) is not None


@pytest.mark.parametrize("page", PAGES)
def test_what_can_be_copied_is_run_or_says_why_not(page: str) -> None:
    assert not list(_unmarked(blocks(page)))


def _unmarked(found: list[Block]) -> Iterator[str]:
    for before, block in zip([None, *found], found, strict=False):
        if not block.language:
            yield f"{block.place}: no language after the fence"
        elif block.language in RUNNABLE and block.kind == "":
            yield f"{block.place}: neither run nor said why not"
        elif block.kind == "run" and block.setting not in SETTINGS:
            yield f"{block.place}: there is no setting '{block.setting}'"
        elif block.kind == "not run" and len(block.reason.split()) < 3:
            yield f"{block.place}: says not why"
        elif block.kind == "prints" and (before is None or before.kind != "run"):
            yield f"{block.place}: nothing runs before it"


def test_a_block_without_marker_is_found() -> None:
    text = (
        "```sh\nls\n```\n\n<!-- run: moon -->\n```sh\nls\n```\n\n```\nls\n```\n\n"
        "<!-- not run: cannot -->\n```sh\nls\n```\n\n<!-- prints -->\n```text\nx\n```\n"
        "<!-- run: service, fails -->\n```sh\nls\n```\n```json\n{}\n```\n"
    )
    assert [line.partition(":")[2] for line in _unmarked(blocks("page", text))] == [
        "1: neither run nor said why not",
        "6: there is no setting 'moon'",
        "10: no language after the fence",
        "15: says not why",
        "20: nothing runs before it",
    ]


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ('{"a": 1}', '{ "a": 1 }', True),
        ('{"a":"job_12"}', '{"a": "job_…"}', True),
        ('{"a":"job_12","b":1}', '{"a": "job_…"}', False),
        ("succeeded", "failed", False),
    ],
)
def test_what_is_printed_is_compared(printed: str, expected: str, same: bool) -> None:
    assert _says(printed, expected) == same
