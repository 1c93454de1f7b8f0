"""Files of this machine go to a place that follows from their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from strucprune_core.errors import InvalidSpec, StorageError
from strucprune_core.storage import local_upload
from strucprune_core.storage.digests import sha256_of
from strucprune_core.storage.local import LocalStore


def ignore(name: str, done: int, total: int) -> None:
    """Follows nothing."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for name in ("config.json", "b.safetensors", "pytorch_model.bin", ".hidden", "below/c.json"):
        (folder / name).write_bytes(name.encode() * 1000)
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    return folder


def measured(place: Path) -> list[local_upload.LocalFile]:
    return local_upload.measured(local_upload.paths_of(place), ignore)


def test_what_a_job_could_read(model: Path) -> None:
    files = measured(model)
    assert [file.name for file in files] == ["a.safetensors", "b.safetensors", "config.json"]
    for file in files:
        assert file.size_bytes == file.path.stat().st_size
        assert file.sha256 == sha256_of(file.path)


def test_one_file(model: Path) -> None:
    (file,) = measured(model / "pytorch_model.bin")
    assert file.name == "pytorch_model.bin"


def test_nothing_to_upload(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="no files"):
        local_upload.paths_of(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        local_upload.measured([tmp_path / "gone"], ignore)


def test_a_name_follows_from_the_content(model: Path) -> None:
    name = local_upload.content_name("m", measured(model))
    assert name.startswith("m-")
    assert local_upload.content_name("m", measured(model)) == name
    (model / "config.json").write_bytes(b"other")
    assert local_upload.content_name("m", measured(model)) != name
    (model / "config.json").rename(model / "other.json")
    assert len({name, local_upload.content_name("m", measured(model))}) == 2


def test_an_upload_continues_with_what_is_missing(model: Path, tmp_path: Path) -> None:
    files, store = measured(model), LocalStore(tmp_path / "there")
    assert list(local_upload.missing(files, store)) == files
    told: list[tuple[str, int, int]] = []
    local_upload.send(files[0], store, lambda *step: told.append(step))
    assert told[-1] == (files[0].name, files[0].size_bytes, files[0].size_bytes)
    store.put(files[1].name, b"")  # As a store may keep of a request that broke off.
    left = list(local_upload.missing(files, store))
    assert left == files[1:]
    for file in left:
        local_upload.send(file, store, ignore)
    assert not list(local_upload.missing(files, store))
    for file in files:
        assert sha256_of(tmp_path / "there" / file.name) == file.sha256


def test_a_file_that_changes_meanwhile(model: Path, tmp_path: Path) -> None:
    (file, *_), store = measured(model), LocalStore(tmp_path / "there")
    file.path.write_bytes(b"shorter")
    with pytest.raises(StorageError, match="changed while it was uploaded"):
        local_upload.send(file, store, ignore)
