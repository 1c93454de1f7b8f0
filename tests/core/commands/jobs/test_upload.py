"""Files of this machine are uploaded before a job is submitted, once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.commands.jobs.upload import option_to_upload, with_uploads
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
    found = with_uploads(body, None)
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
    assert with_uploads(body, None) == found
    assert "uploading" not in (told := capsys.readouterr().err)
    assert f"{tiny_model} is already at {model}" in told
    assert {info.key: info.version for info in store.list()} == before


def test_a_place_that_is_given(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    body = job(tiny_model, text_file, str(tmp_path / "out"))
    found = with_uploads(body, str(tmp_path / "there"))
    assert Path(found["model"]["uri"]).parent == tmp_path / "there/models"
    assert Path(found["calibration"]["uri"]).read_bytes() == text_file.read_bytes()


def test_other_models_go_elsewhere(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / tiny_model.name)
    (other / "README.md").write_text("another")
    places = {
        with_uploads(job(each, text_file, "out"), str(tmp_path / "there"))["model"]["uri"]
        for each in (tiny_model, other)
    }
    assert len(places) == 2


def test_a_model_that_cannot_be_pruned_is_not_uploaded(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint) as raised:
        with_uploads(job(broken, text_file, "out"), str(tmp_path / "there"))
    assert raised.value.field == "model.uri"
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("model", "output", "upload_to", "option"),
    [
        ("HERE", "s3://b/team/out", None, "--model"),
        ("HERE", "s3://b/out", None, "--model"),
        ("HERE", "s3://b", None, None),  # no folder beside it
        ("HERE", "/their/output", None, None),  # perhaps the service's own disk
        ("HERE", "/their/output", "s3://b/up", "--model"),
        ("/nowhere/model", "s3://b/team/out", None, None),
        ("s3://b/model", "s3://b/team/out", None, None),
        ("hf://org/name", "s3://b/team/out", None, None),
    ],
)
def test_what_would_be_uploaded(
    tmp_path: Path, model: str, output: str, upload_to: str | None, option: str | None
) -> None:
    place = tmp_path if model == "HERE" else Path(model)
    body = job(place, Path("s3://b/t"), output)
    body["model"]["uri"] = str(tmp_path) if model == "HERE" else model
    body["calibration"] = {"source": "self"}
    assert option_to_upload(body, upload_to) == option
    if option is None:
        assert with_uploads(body, upload_to) == body
