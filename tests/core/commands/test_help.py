"""Help: it answers at once, in sections, with units, limits, defaults and examples that work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from strucprune_core.commands.job_option_help import (
    HEADINGS,
    as_options,
    heading_of,
    help_of,
    metavar_of,
)
from strucprune_core.commands.job_options import OPTIONS, JobOption
from strucprune_core.commands.main import app

# What takes long to import, and what only a command that does its work needs.
SLOW = {
    *("torch", "transformers", "tokenizers", "pyarrow", "numpy", "huggingface_hub"),
    *("boto3", "botocore", "httpx", "asyncio", "jinja2", "lm_eval", "gguf"),
    *("strucprune_core.report.document", "strucprune_core.plan.estimate"),
}
COMMANDS = ["", "prune", "estimate", "evaluate", "jobs", "jobs submit", "jobs download", "keys"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_slow(command: str) -> None:
    code = (
        "import sys\n"
        "from strucprune_core.commands.main import app\n"
        "try:\n"
        "    app(sys.argv[1:], prog_name='strucprune')\n"
        "finally:\n"
        "    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"Usage: strucprune {command}".rstrip())
    loaded = set(done.stderr.split())
    assert "strucprune_core.spec" in loaded
    assert not loaded & SLOW


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by its words."""
    group = get_command(app) if group is None else group
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*path, name))
        else:
            yield " ".join((*path, name)), each


EVERY = dict(commands())


def shown(command: str) -> str:
    return CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=100).stdout


@pytest.mark.parametrize("command", EVERY)
def test_examples_are_valid(command: str) -> None:
    found: Any = EVERY[command]
    assert found.epilog
    for line in found.epilog.splitlines():
        program, *words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", line))
        words = words[: words.index(">")] if ">" in words else words
        assert program == "strucprune"
        assert words[: len(command.split())] == command.split()
        with found.make_context(command, words[len(command.split()) :]) as context:
            assert set(context.params) == {each.name for each in found.params}


@pytest.mark.parametrize("command", EVERY)
def test_every_option_says_what_it_takes_and_what_for(command: str) -> None:
    for each in EVERY[command].params:
        assert each.help, each.name
        assert each.metavar or each.is_flag, each.name
    assert not re.search(r"<(str|int|float|list)", shown(command))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("prune", "[MODEL]"),
        ("jobs show", "JOB"),
        ("jobs compare", "JOB..."),
        ("publish", "DIR TARGET"),
    ],
)
def test_arguments_are_written_as_they_are_given(command: str, arguments: str) -> None:
    usage = shown(command).splitlines()[0]
    assert usage == f"Usage: strucprune {command} [OPTIONS] {arguments}"


@pytest.mark.parametrize("command", EVERY)
def test_a_list_of_commands_cuts_no_sentence(command: str) -> None:
    group, _, name = command.rpartition(" ")
    (line,) = re.findall(rf"^  {name} +(.*)$", shown(group), re.MULTILINE)
    assert not line.endswith("..")


def test_options_of_a_job_are_in_sections() -> None:
    text = shown("prune")
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    *of_the_job, last = headings[headings.index("Model") :]
    assert of_the_job == [each for each in HEADINGS if each != "For a service"]
    assert last == "Options"
    assert "For a service" in shown("jobs submit")
    assert {heading_of(option) for option in OPTIONS} == set(HEADINGS)


def option_named(name: str) -> JobOption:
    (found,) = (option for option in OPTIONS if option.name == name)
    return found


@pytest.mark.parametrize(
    ("name", "metavar", "note"),
    [
        ("sparsity", "FRACTION", "[above 0; below 1]"),
        ("size", "FRACTION", None),
        ("samples", "NUMBER", "[default: 32; 2 to 65,536]"),
        ("sequence-length", "TOKENS", "[default: 512; 8 to 131,072]"),
        ("recover-steps", "STEPS", "[default: 0; 1 to 10,000]"),
        ("deadline-seconds", "SECONDS", "[1 to 2,592,000]"),
        ("device-memory", "SIZE", None),
        ("solver", "[obs|admm]", "[default: obs]"),
        ("export", "[gguf|gguf_q8_0|fp8|block_configs]", None),
        ("max-sparsity-by-layer", "LAYER=FRACTION", None),
        ("output", "URI", None),
        ("max-perplexity-ratio", "NUMBER", "[default: 10; above 1]"),
        ("seed", "NUMBER", "[at least 0]"),
    ],
)
def test_units_limits_and_defaults(name: str, metavar: str, note: str | None) -> None:
    option = option_named(name)
    assert metavar_of(option) == metavar
    text = help_of(option)
    assert text.endswith(note) if note else not text.endswith("]")


def test_fields_are_named_as_options() -> None:
    context = ("pruning", "target", "memory_bytes")
    assert as_options("of `context_tokens`", context) == "of --target-context-tokens"
    assert as_options("`target.bytes` or `sizes`", context) == "--target-bytes or --size"
    assert as_options("`kv_groups` stay", context) == "`kv_groups` stay"
