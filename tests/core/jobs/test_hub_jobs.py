"""Jobs whose model and texts lie on a hub: `tests.support.hub_server`, which is one of our own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import ObjectNotFound, Stopped
from strucprune_core.plan.inspection import inspect_job
from strucprune_core.plan.pins import pinned_spec
from strucprune_core.report.document import Report
from strucprune_core.run.pins import pinned_in
from strucprune_core.spec import JobSpec, ModelSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store, pinned
from tests.core.jobs.tiny_job import StopOnceFinished, checkpoint_of, run, tiny_spec
from tests.support.hub_server import Hub, Repo

URI = "hf://acme/tiny"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture
def repo(hub: Hub, model: Path, text_file: Path) -> Repo:
    hub.add("datasets/acme/prose", {"data/prose.txt": text_file.read_bytes()})
    return hub.add("acme/tiny", {".gitattributes": b"", **_files(model)})


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def from_hub(repo: Repo, tmp_path: Path) -> JobSpec:
    text = "hf://datasets/acme/prose/data/prose.txt"
    spec = tiny_spec(
        *(Path("unused"), Path("unused"), tmp_path / "out"),
        calibration={"uri": text},
        evaluation={"uri": text},
    )
    return spec.model_copy(update={"model": ModelSpec(uri=URI)})


def weights_and_more(directory: Path) -> dict[str, bytes]:
    """All files that say nothing of where the model came from."""
    return without_card(checkpoint_of(directory))


def without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != "README.md"}


def report_of(directory: Path) -> Report:
    return Report.model_validate_json((directory / "report.json").read_bytes())


def test_the_same_bytes_as_from_a_directory(
    from_hub: JobSpec, repo: Repo, expected: dict[str, bytes], tmp_path: Path
) -> None:
    run(from_hub, tmp_path, open_store=open_store)
    assert weights_and_more(tmp_path / "out") == without_card(expected)
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "base_model: acme/tiny\nbase_model_relation: finetune\n" in card
    report = report_of(tmp_path / "out")
    commit = repo.branches["main"]
    assert report.model.uri == report.spec["model"]["uri"] == f"{URI}@{commit}"
    assert re.fullmatch(
        r"hf://datasets/acme/prose@[0-9a-f]{40}/data/prose\.txt", report.spec["calibration"]["uri"]
    )


def test_only_files_of_a_model_are_read(
    from_hub: JobSpec, repo: Repo, hub: Hub, tmp_path: Path
) -> None:
    extra = {"pytorch_model.bin": b"pickle", "modeling_evil.py": b"raise", "sub/x.json": b"{}"}
    repo.push({**repo.head(), **extra})
    run(from_hub, tmp_path, open_store=open_store)
    read = {request.path.rpartition("/")[2] for request in hub.asked("GET", "/resolve/")}
    assert read <= {
        *("config.json", "model.safetensors", "prose.txt", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    }


def test_a_resumed_job_reads_the_commit_that_it_began_with(
    from_hub: JobSpec, repo: Repo, expected: dict[str, bytes], tmp_path: Path
) -> None:
    first = repo.branches["main"]
    with pytest.raises(Stopped):
        run(from_hub, tmp_path, open_store=open_store, stop=StopOnceFinished(tmp_path, "solve.0"))
    repo.push({"config.json": b"another model"})
    run(from_hub, tmp_path, open_store=open_store)
    assert weights_and_more(tmp_path / "out") == without_card(expected)
    assert report_of(tmp_path / "out").model.uri == f"{URI}@{first}"


def test_commits_are_part_of_the_fingerprint(from_hub: JobSpec, repo: Repo) -> None:
    before = pinned_spec(from_hub, pinned)
    assert pinned_spec(from_hub, pinned).result_fingerprint() == before.result_fingerprint()
    repo.push({**repo.head(), "README.md": b"new"})
    assert pinned_spec(from_hub, pinned).result_fingerprint() != before.result_fingerprint()
    assert inspect_job(before, open_store).model.index.store.uri == before.model.uri


def test_damaged_records_of_commits_are_replaced(repo: Repo, tmp_path: Path) -> None:
    workspace = LocalStore(tmp_path)
    commit = repo.branches["main"]
    assert pinned_in(workspace, URI) == f"{URI}@{commit}"
    (key,) = [info.key for info in workspace.list()]
    repo.push({"x": b""})
    other = json.dumps({"uri": URI, "pinned": f"hf://acme/other@{commit}"}).encode()
    branch = json.dumps({"uri": URI, "pinned": URI}).encode()
    for damaged in (b"", b"{", b"[]", b'{"pinned": 3}', other, branch):
        workspace.put(key, damaged)
        assert pinned_in(workspace, URI) == f"{URI}@{repo.branches['main']}"
        assert json.loads(workspace.read(key))["pinned"] == f"{URI}@{repo.branches['main']}"
    assert pinned_in(workspace, "s3://bucket/x") == "s3://bucket/x"


def test_a_directory_of_that_name_comes_first(
    model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = tiny_spec(Path("acme/tiny"), text_file, tmp_path / "out")
    with pytest.raises(ObjectNotFound, match="use hf://acme/tiny") as caught:
        inspect_job(spec, open_store)
    assert caught.value.field == "model.uri"
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme/tiny").symlink_to(model)
    inspect_job(spec, open_store)
    spec = tiny_spec(Path("acme/tiny/sub"), text_file, tmp_path / "out")
    with pytest.raises(ObjectNotFound) as caught:
        inspect_job(spec, open_store)
    assert "hf://acme/tiny" not in str(caught.value)


def test_a_job_on_a_snapshot_of_the_local_cache(
    model: Path, text_file: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    repository = tmp_path / "hub/models--acme--tiny"
    snapshot = repository / "snapshots" / ("c" * 40)
    for folder in (snapshot, repository / "blobs"):
        folder.mkdir(parents=True)
    for number, (name, data) in enumerate(_files(model).items()):
        (repository / "blobs" / str(number)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    run(tiny_spec(snapshot, text_file, tmp_path / "out"), tmp_path)
    assert weights_and_more(tmp_path / "out") == without_card(expected)


def test_an_output_on_a_hub_is_refused(from_hub: JobSpec) -> None:
    body: dict[str, Any] = from_hub.model_dump(mode="json")
    body["output"]["uri_prefix"] = "hf://acme/small"
    with pytest.raises(ValueError, match="strucprune publish"):
        JobSpec.model_validate(body)
