"""The S3 server dies in the middle of a job: nothing is published, and the job continues later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import StorageUnavailable
from strucprune_core.run.progress import Phase, Progress
from strucprune_core.spec import JobSpec
from strucprune_core.storage import s3
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store
from tests.core.jobs.tiny_job import REPORTS, checkpoint_of, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

BUCKET = "outage"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of our own, to be killed."""
    with S3Server(tmp_path_factory.mktemp("mortal-s3")) as server:
        server.create_bucket(BUCKET)
        yield server
        server.kill()  # quicker than an orderly end


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 2)  # a short wait is enough
    settings = S3Settings(
        server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        addressing_style="path",
    )
    return open_store(f"s3://{BUCKET}", settings)


@pytest.mark.services
def test_a_job_outlives_its_storage(
    server: S3Server, bucket: Store, tmp_path: Path, text_file: Path
) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2)
    for path in (*model.iterdir(), text_file):
        bucket.upload(f"in/{path.name}", path)
    local = tiny_spec(model, text_file, tmp_path / "out", evaluation=None)
    spec = JobSpec.model_validate(
        {
            **local.model_dump(mode="json"),
            "model": {"uri": f"s3://{BUCKET}/in"},
            "output": {"uri_prefix": f"s3://{BUCKET}/out"},
            "calibration": {
                **local.calibration.model_dump(),
                "uri": f"s3://{BUCKET}/in/{text_file.name}",
            },
        }
    )

    def open_in_bucket(uri: str) -> Store:
        return bucket.child(uri.removeprefix(f"s3://{BUCKET}/"))

    def dying_at(phase: Phase, progress: Progress) -> None:
        if progress.phase == phase:
            server.kill()

    # Once while weights are read (all are kept near afterwards), once when all is ready to be
    # published.
    for phase in (Phase.INSPECTING, Phase.COMMITTING):
        with pytest.raises(StorageUnavailable) as caught:
            run(
                spec,
                tmp_path / "job",
                open_store=open_in_bucket,
                progress=lambda progress, phase=phase: dying_at(phase, progress),  # type: ignore[misc]
            )
        assert caught.value.retryable
        assert f"s3://{BUCKET}/in/" in str(caught.value)
        assert caught.value.remedy
        assert caught.value.phase == phase.value
        server.start()
        assert list(bucket.list("out/")) == []

    run(spec, tmp_path / "job", open_store=open_in_bucket)
    run(local, tmp_path / "undisturbed")
    out = bucket.child("out")
    published = {info.key: bytes(out.read(info.key)) for info in out.list()}
    assert "strucprune.json" in published
    checkpoint = {name: data for name, data in published.items() if name not in REPORTS}
    assert checkpoint == checkpoint_of(tmp_path / "out")
