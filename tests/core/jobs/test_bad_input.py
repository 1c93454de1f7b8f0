"""Bad input ends in a clear error, with its field and its cure, before any heavy work.

Here as `prune` raises it and as the command shows it; `tests/api/test_bad_input.py` has the same
for the service.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.commands.failures import option_name
from strucprune_core.errors import InvalidText, StrucPruneError
from strucprune_core.storage import s3
from strucprune_core.storage.local import LocalStore
from tests.core.commands.calling import call, prune_command
from tests.core.jobs.tiny_job import files_of, run, tiny_spec
from tests.support.broken_model import BREAKAGES, Breakage, broken_copy
from tests.support.text import make_text

each_breakage = pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)


def refusal(*command: str | Path, exit_code: int = 1) -> dict[str, Any]:
    """The error of a command that fails, the same for people as in JSON."""
    shown, printed = call(*command), call(*command, "--json")
    assert (shown.exit_code, printed.exit_code) == (exit_code, exit_code)
    assert shown.stdout == ""
    error: dict[str, Any] = json.loads(printed.stdout)["error"]
    field = option_name(error["field"])
    words = f"error ({error['code']}): {field}: {error['message']} {error['remedy'] or ''}"
    for line in (shown.stderr, printed.stderr):
        assert squeezed(words) in squeezed(line)
    return error


def squeezed(text: str) -> str:
    """Text without what a terminal adds to break lines, and without full stops."""
    return "".join(text.split()).replace(".", "")


@each_breakage
def test_a_broken_model(
    tmp_path: Path, tiny_model: Path, text_file: Path, breakage: Breakage
) -> None:
    model = broken_copy(tiny_model, tmp_path / "in/model", breakage)
    with pytest.raises(StrucPruneError, match=breakage.words) as caught:
        run(tiny_spec(model, text_file, tmp_path / "job/out"), tmp_path / "job")
    error = caught.value
    assert (error.code, error.field, error.retryable) == (breakage.code, "model.uri", False)
    assert error.remedy
    assert not (tmp_path / "job").exists()  # neither output nor workspace nor scratch


@each_breakage
def test_the_command_refuses_a_broken_model(
    tmp_path: Path, tiny_model: Path, text_file: Path, breakage: Breakage
) -> None:
    model, job = broken_copy(tiny_model, tmp_path / "in/model", breakage), tmp_path / "job"
    prune = prune_command(model, text_file, job / "out", "--workspace", job / "workspace")
    for command in (["inspect", model], prune):
        error = refusal(*command)
        assert (error["code"], error["field"]) == (breakage.code, "model.uri")
    assert not job.exists()


@pytest.mark.parametrize("sparsity", ["0", "1", "-0.3", "1.5", "nan", "inf", "0.95", "0.0001"])
def test_the_command_refuses_a_sparsity(
    tmp_path: Path, tiny_model: Path, text_file: Path, sparsity: str
) -> None:
    job = tmp_path / "job"
    more = (f"--sparsity={sparsity}", "--workspace", job / "workspace")
    error = refusal(*prune_command(tiny_model, text_file, job / "out", *more), exit_code=2)
    assert (error["code"], error["field"]) == ("invalid_spec", "pruning.sparsity")
    # Either a cure, or a sentence that is one: "must be below 1".
    assert error["remedy"] or re.search("must be|did you mean", error["message"])
    assert not job.exists()


@pytest.mark.parametrize(
    ("section", "more"), [("calibration", {}), ("evaluation", {"sequences": 8})]
)
def test_a_text_of_enough_bytes_but_too_few_tokens(
    tmp_path: Path, tiny_model: Path, text_file: Path, section: str, more: dict[str, Any]
) -> None:
    # Only the tokenizer can tell, which is the job's first unit.
    short = tmp_path / "short.txt"
    short.write_text(make_text(1))
    assert short.stat().st_size > 8 * 32
    spec = tiny_spec(
        tiny_model, text_file, tmp_path / "out", **{section: {"uri": str(short), **more}}
    )
    with pytest.raises(InvalidText, match="tokens; 8 sequences of 32 need 256") as caught:
        run(spec, tmp_path)
    assert (caught.value.field, caught.value.phase) == (f"{section}.uri", "inspecting")
    assert caught.value.remedy
    units = {info.key.split("/")[1] for info in LocalStore(tmp_path / "workspace").list("units/")}
    assert units <= {"model_check", "tokens.evaluation"}
    assert files_of(tmp_path / "out") == {}


def test_the_command_refuses_a_text_of_too_few_tokens(tmp_path: Path, tiny_model: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(make_text(1))
    error = refusal(*prune_command(tiny_model, short, tmp_path / "out"))
    assert (error["code"], error["field"]) == ("invalid_text", "calibration.uri")
    assert "longer text" in error["remedy"]
    assert not (tmp_path / "out").exists()


UNKNOWN_BUCKET = {"bucket": "no-such-bucket"}
UNKNOWN_KEY = {"ACCESS_KEY_ID": "nobody"}
WRONG_SECRET = {"SECRET_ACCESS_KEY": "wrong-secret"}
NO_ANSWER = {"ENDPOINT_URL": "http://127.0.0.1:1"}


@pytest.mark.services
@pytest.mark.parametrize(
    ("field", "changes", "code", "words"),
    [
        ("model.uri", UNKNOWN_BUCKET, "object_not_found", "no such bucket"),
        ("output.uri_prefix", UNKNOWN_BUCKET, "object_not_found", "no such bucket"),
        ("calibration.uri", UNKNOWN_BUCKET, "object_not_found", "no such bucket"),
        ("model.uri", UNKNOWN_KEY, "access_denied", "refused access"),
        ("output.uri_prefix", WRONG_SECRET, "access_denied", "refused access"),
        ("model.uri", NO_ANSWER, "storage_unavailable", "Could not connect"),
    ],
    ids=[
        *("no bucket for the model", "no bucket for the output", "no bucket for the text"),
        *("unknown key", "wrong secret", "no answer"),
    ],
)
def test_the_command_says_what_is_wrong_with_the_storage(
    s3_server: S3Server,
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    changes: dict[str, str],
    code: str,
    words: str,
) -> None:
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 1)  # no waiting
    settings = {
        "bucket": f"cli-{uuid4().hex[:8]}",
        "ENDPOINT_URL": s3_server.endpoint_url,
        "ACCESS_KEY_ID": s3_server.access_key_id,
        "SECRET_ACCESS_KEY": s3_server.secret_access_key,
    }
    s3_server.create_bucket(settings["bucket"])
    settings |= changes
    bucket = settings.pop("bucket")
    for name, value in settings.items():
        monkeypatch.setenv(f"STRUCPRUNE_S3_{name}", value)
    places = {
        "model.uri": str(tiny_model),
        "calibration.uri": str(text_file),
        "output.uri_prefix": str(tmp_path / "out"),
        field: f"s3://{bucket}/place",
    }
    error = refusal(
        *("prune", places["model.uri"], "--output", places["output.uri_prefix"]),
        *("--calibration", places["calibration.uri"], "--sparsity", "0.3"),
    )
    assert (error["code"], error["field"]) == (code, field)
    assert error["retryable"] == (code == "storage_unavailable")
    assert words in error["message"]
    assert error["remedy"]
    assert settings["SECRET_ACCESS_KEY"] not in str(error)
    assert not (tmp_path / "out").exists()
