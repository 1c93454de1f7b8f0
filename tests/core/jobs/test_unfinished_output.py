"""A run broke off while it published: the same job may continue there, and no other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import OutputNotEmpty, StorageUnavailable, StrucPruneError
from strucprune_core.pipeline import prune
from strucprune_core.plan.inspection import examine_job
from strucprune_core.report.document import Report
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.s3 import S3Store, open_s3
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store, Tick, ignore_bytes
from tests.core.jobs.tiny_job import FlakyStore, checkpoint_of, files_of, run
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=2, intermediate=96)


class BreaksOff:
    """A store that goes away at its n-th write; another's in all else."""

    def __init__(self, store: Store, fails_at: int) -> None:
        self._store, self._left = store, fails_at

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise StorageUnavailable("no space left on device")

    def put(self, key: str, data: bytes) -> None:
        self._count()
        self._store.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._count()
        return self._store.put_if_absent(key, data)

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        self._count()
        self._store.upload(key, path, tick)


class Place:
    """A job whose output lies in a directory or a bucket."""

    def __init__(self, spec: JobSpec, output: Store) -> None:
        self.spec, self.output = spec, output

    def open(self, fails_at: int | None = None) -> Callable[[str], Store]:
        def open_store(uri: str) -> Store:
            if uri != self.spec.output.uri_prefix:
                return LocalStore(Path(uri))
            return self.output if fails_at is None else BreaksOff(self.output, fails_at)  # type: ignore[return-value]

        return open_store

    def run(self, root: Path, fails_at: int | None = None, spec: JobSpec | None = None) -> Report:
        return prune(
            spec or self.spec,
            workspace=LocalStore(root / "workspace"),
            scratch=root / "scratch",
            open_store=self.open(fails_at),
        )

    def breaks_off(self, root: Path, fails_at: int = 4) -> None:
        with pytest.raises(StorageUnavailable):
            self.run(root, fails_at)
        assert len(self.keys()) == fails_at - 1

    def keys(self) -> list[str]:
        return [info.key for info in self.output.list()]

    def files(self) -> dict[str, bytes]:
        return {key: bytes(self.output.read(key)) for key in self.keys()}

    def checkpoint(self) -> dict[str, bytes]:
        reports = ("report.json", "report.html", "strucprune.json")
        return {key: data for key, data in self.files().items() if key not in reports}


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, spec: JobSpec, s3_server: S3Server
) -> Place:
    if request.param == "local":
        return Place(spec, LocalStore(tmp_path / "out"))
    bucket = f"unfinished-{uuid4().hex}"
    s3_server.create_bucket(bucket)
    settings = S3Settings(
        endpoint_url=s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    output = spec.output.model_copy(update={"uri_prefix": f"s3://{bucket}/out"})
    return Place(spec.model_copy(update={"output": output}), open_s3(bucket, "out", settings))


@pytest.mark.parametrize("same_workspace", [True, False])
@pytest.mark.parametrize("fails_at", [2, 4])
def test_the_same_job_goes_on(
    place: Place, tmp_path: Path, expected: dict[str, bytes], fails_at: int, same_workspace: bool
) -> None:
    place.breaks_off(tmp_path / "first", fails_at)
    assert examine_job(place.spec, place.open()).issues == []
    report = place.run(tmp_path / ("first" if same_workspace else "second"))
    assert place.checkpoint() == expected
    assert Report.model_validate_json(place.files()["report.json"]) == report
    manifest = json.loads(place.files()["strucprune.json"])
    assert {entry["name"] for entry in manifest["files"]} == set(place.keys()) - {"strucprune.json"}


def test_what_a_killed_writer_left_goes(place: Place, tmp_path: Path) -> None:
    """A file without its name yet, and the parts of an upload; another object's stay."""
    place.breaks_off(tmp_path / "first")
    if isinstance(place.output, S3Store):
        client, bucket = place.output.client, place.output.bucket
        for key in ("out/model.safetensors", "elsewhere"):
            begun = client.create_multipart_upload(Bucket=bucket, Key=key)
            client.upload_part(
                Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"part"
            )
        place.run(tmp_path / "first")
        left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        assert [upload["Key"] for upload in left] == ["elsewhere"]
    else:
        (tmp_path / "out/.strucprune-tmp-0123").write_bytes(b"half a file")
        place.run(tmp_path / "first")
        assert not list((tmp_path / "out").glob(".*"))


def refused(place: Place, root: Path, spec: JobSpec | None = None) -> StrucPruneError:
    before = place.files()
    with pytest.raises(OutputNotEmpty) as caught:
        place.run(root, spec=spec)
    assert caught.value.field == "output.uri_prefix"
    assert caught.value.remedy
    assert place.files() == before
    return caught.value


def test_another_job_may_not(place: Place, tmp_path: Path) -> None:
    place.breaks_off(tmp_path / "first")
    other = place.spec.model_copy(
        update={"pruning": place.spec.pruning.model_copy(update={"sparsity": 0.4})}
    )
    refused(place, tmp_path / "second", other)
    assert [issue.code for issue in examine_job(other, place.open()).issues] == ["output_not_empty"]


def test_nobody_may_where_something_else_lies(place: Place, tmp_path: Path) -> None:
    place.breaks_off(tmp_path / "first")
    place.output.put("precious.txt", b"mine")
    refused(place, tmp_path / "second")


def test_a_complete_output_is_left_alone(place: Place, tmp_path: Path) -> None:
    place.run(tmp_path / "first")
    refused(place, tmp_path / "second")


def test_what_another_machine_left_is_not_mixed_with(place: Place, tmp_path: Path) -> None:
    place.breaks_off(tmp_path / "first")
    claim = json.loads(place.files()["report.json"])
    claim["environment"]["torch"] = "1.0"
    place.output.put("report.json", json.dumps(claim).encode())
    error = refused(place, tmp_path / "second")
    assert "report.json" in (error.remedy or "")
    assert not list((tmp_path / "second/workspace").glob("units/capture.*"))  # before any work
    for name in [entry["name"] for entry in claim["files"]] + ["report.json"]:  # as it says
        place.output.delete(name)
    place.run(tmp_path / "second")


def test_what_was_left_of_an_older_text_goes(place: Place, tmp_path: Path, model: Path) -> None:
    texts = tmp_path / "calibration.txt"
    texts.write_text(make_text(seed=1))
    calibration = place.spec.calibration.model_copy(update={"uri": str(texts)})
    place.spec = place.spec.model_copy(update={"calibration": calibration})
    place.breaks_off(tmp_path / "first")
    old = place.files()
    texts.write_text(make_text(seed=2))
    refused(place, tmp_path / "second")  # whose it is cannot be known without its workspace
    place.run(tmp_path / "first")
    assert place.files()["model.safetensors"] != old.get("model.safetensors")
    assert "strucprune.json" in place.files()
    # Complete, it is nobody's to replace.
    texts.write_text(make_text(seed=3))
    error = refused(place, tmp_path / "first")
    assert "replaced" in error.message


def test_a_run_that_was_at_work_all_the_time_is_not_joined(tmp_path: Path, spec: JobSpec) -> None:
    """Two runs of one job, neither dead: the one that is first publishes, the other is refused."""
    out = tmp_path / "out"
    slow = FlakyStore(out, 4)
    others: dict[str, Store] = {str(out): slow}
    with pytest.raises(StorageUnavailable):
        run(spec, tmp_path / "first", open_store=lambda uri: others.get(uri, LocalStore(Path(uri))))
    finished: list[Report] = []

    def finish(*_: object) -> None:
        if not finished:
            finished.append(run(spec, tmp_path / "first"))

    with pytest.raises(OutputNotEmpty, match=r"published to .* first"):
        prune(
            spec,
            workspace=LocalStore(tmp_path / "second/workspace"),
            scratch=tmp_path / "second/scratch",
            progress=finish,
        )
    assert Report.model_validate_json((out / "report.json").read_bytes()) == finished[0]


_KILLED = """
import json, os, signal, sys
from pathlib import Path
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import run

class Killed(LocalStore):
    def put(self, key, data):
        if key == "tokenizer_config.json":
            os.kill(os.getpid(), signal.SIGKILL)
        super().put(key, data)

spec = JobSpec.model_validate(json.loads(sys.argv[1]))
out = spec.output.uri_prefix
store_of = lambda uri: Killed if uri == out else LocalStore
run(spec, Path(sys.argv[2]), open_store=lambda uri: store_of(uri)(Path(uri)))
"""


def test_a_killed_run_without_a_workspace(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, spec.model_dump_json(), str(tmp_path / "first")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", "1"))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "report.json" in files_of(tmp_path / "out")
    assert "strucprune.json" not in files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "first")
    run(spec, tmp_path / "second")
    assert checkpoint_of(tmp_path / "out") == expected
