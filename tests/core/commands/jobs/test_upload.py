"""Files of this machine are uploaded before a job is submitted, once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.client.models import FieldError, Validation
from strucprune_core.commands.jobs.upload import note_on_uploads, ready_job
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.storage.open import open_store


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"uploads-{uuid4().hex}"
    s3_server.create_bucket(name)
    monkeypatch.setenv("STRUCPRUNE_S3_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("STRUCPRUNE_S3_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("STRUCPRUNE_S3_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    return name


class Service:
    """Says that fields of each job are wrong."""

    def __init__(self, *wrong: str) -> None:
        issues = [FieldError(pointer=each, code="access_denied", detail="No.") for each in wrong]
        self._verdict = Validation(valid=not wrong, issues=issues)
        self.bodies: list[dict[str, Any]] = []

    def validate(self, body: dict[str, Any]) -> Validation:
        self.bodies.append(body)
        return self._verdict


def ready(
    body: dict[str, Any], upload_to: str | None, service: Service | None = None
) -> dict[str, Any]:
    return ready_job(cast(Any, service or Service("/model/uri")), body, upload_to)


def job(model: Path, text: Path, output: str) -> dict[str, Any]:
    return {
        "model": {"uri": str(model)},
        "output": {"uri_prefix": output},
        "calibration": {"uri": str(text)},
        "pruning": {"sparsity": 0.3},
    }


def test_a_model_and_a_text(
    bucket: str, tiny_model: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = job(tiny_model, text_file, f"s3://{bucket}/team/run-1")
    found = ready(body, None)
    assert body["model"]["uri"] == str(tiny_model)  # as it was
    model, text = found["model"]["uri"], found["calibration"]["uri"]
    assert model.startswith(f"s3://{bucket}/team/uploads/models/{tiny_model.name}-")
    assert text.startswith(f"s3://{bucket}/team/uploads/texts/{text_file.name}-")
    assert text.endswith(f"/{text_file.name}")
    assert {key: found[key] for key in ("output", "pruning")} == {
        key: body[key] for key in ("output", "pruning")
    }
    store = open_store(model)
    for path in tiny_model.iterdir():
        assert bytes(store.read(path.name)) == path.read_bytes()
    assert f"{tiny_model} uploaded to {model}" in capsys.readouterr().err
    before = {info.key: info.version for info in store.list()}
    assert ready(body, None) == found
    assert "uploading" not in (told := capsys.readouterr().err)
    assert f"{tiny_model} is already at {model}" in told
    assert {info.key: info.version for info in store.list()} == before


def test_a_place_that_is_given(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    body = job(tiny_model, text_file, str(tmp_path / "out"))
    found = ready(body, str(tmp_path / "there"))
    assert Path(found["model"]["uri"]).parent == tmp_path / "there/models"
    assert Path(found["calibration"]["uri"]).read_bytes() == text_file.read_bytes()


def test_other_models_go_elsewhere(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / tiny_model.name)
    (other / "README.md").write_text("another")
    places = {
        ready(job(each, text_file, "out"), str(tmp_path / "there"))["model"]["uri"]
        for each in (tiny_model, other)
    }
    assert len(places) == 2


def test_a_model_that_cannot_be_pruned_is_not_uploaded(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint) as raised:
        ready(job(broken, text_file, "out"), str(tmp_path / "there"))
    assert raised.value.field == "model.uri"
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("HERE", "s3://b"),  # no folder beside it
        ("HERE", "/their/output"),
        ("/nowhere/model", "s3://b/team/out"),
        ("s3://b/model", "s3://b/team/out"),
        ("hf://org/name", "s3://b/team/out"),
        ("~no-such-user/m", "s3://b/team/out"),
    ],
)
def test_what_is_not_uploaded(tmp_path: Path, model: str, output: str) -> None:
    body = job(tmp_path, tmp_path, output)
    body["model"]["uri"] = str(tmp_path) if model == "HERE" else model
    body["calibration"] = {"source": "self"}
    asked = Service()
    assert ready(body, None, asked) == body
    assert not asked.bodies  # The service is asked about local files only.


def test_what_the_service_can_read_stays(tiny_model: Path, text_file: Path) -> None:
    body = job(tiny_model, text_file, "s3://b/team/out")
    for wrong in ((), ("/pruning/sparsity",)):
        asked = Service(*wrong)
        assert ready(body, None, asked) == body
        assert asked.bodies == [body]


@pytest.mark.parametrize(("wrong", "told"), [("/model/uri", True), ("/pruning/sparsity", False)])
def test_a_check_says_that_it_uploads_nothing(
    tmp_path: Path, wrong: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    body = job(tmp_path, tmp_path, "s3://b/team/out")
    note_on_uploads(body, Service(wrong).validate(body))
    assert ("uploaded first" in capsys.readouterr().err) is told
