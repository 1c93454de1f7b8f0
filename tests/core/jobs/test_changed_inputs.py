"""Inputs that are written again: a run with the same workspace goes by what they hold now."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import InvalidText, Stopped, WorkspaceMismatch
from strucprune_core.pipeline import prune
from strucprune_core.plan.graph import ancestors, build_graph, publication, texts_behind
from strucprune_core.report.document import Report
from strucprune_core.run.progress import FinishedUnit, Progress
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.s3 import open_s3
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import ObjectInfo, Store
from strucprune_core.storage.versions import END_BYTES, WHOLE_BYTES, version_of
from tests.core.jobs.tiny_job import StopOnceFinished, checkpoint_of, files_of, run, tiny_spec
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

pytestmark = pytest.mark.services
CALIBRATION, EVALUATION = make_text(seed=1), make_text(seed=2)
OTHER = make_text(seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=2, intermediate=96)


class Place:
    """Where a job's texts lie: a directory, or a bucket."""

    def __init__(self, root: Path, model: Path, bucket: Store | None) -> None:
        self.root, self._bucket = root, bucket
        self.write("calibration.txt", CALIBRATION)
        self.write("evaluation.txt", EVALUATION)
        base = str(root) if bucket is None else "s3://bucket"
        self.spec = tiny_spec(
            model,
            root / "none",
            root / "out",
            calibration={"uri": f"{base}/calibration.txt"},
            evaluation={"uri": f"{base}/evaluation.txt", "max_perplexity_ratio": 1e6},
        )
        self.done: list[str] = []

    def write(self, name: str, text: str) -> None:
        if self._bucket is not None:
            self._bucket.put(name, text.encode())
        else:
            (self.root / name).write_text(text)

    def open(self, uri: str) -> Store:
        if uri.startswith("s3:"):
            assert self._bucket is not None
            return self._bucket
        return LocalStore(Path(uri))

    def run(
        self,
        until: str | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
        root: Path | None = None,
        spec: JobSpec | None = None,
    ) -> Report:
        """Run the job, or until a unit is finished; `done` are the units that were computed."""
        self.done = []
        root = root or self.root

        def note(unit: FinishedUnit) -> None:
            self.done.append(unit.name)

        return prune(
            spec or self.spec,
            workspace=LocalStore(root / "workspace"),
            scratch=root / "scratch",
            open_store=self.open,
            progress=progress,
            stop=None if until is None else StopOnceFinished(root, until),
            finished=note,
        )

    def anew(self) -> dict[str, bytes]:
        """The checkpoint of the job without any workspace."""
        root = self.root / "anew"
        output = self.spec.output.model_copy(update={"uri_prefix": str(root / "out")})
        self.run(root=root, spec=self.spec.model_copy(update={"output": output}))
        return checkpoint_of(root / "out")


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, model: Path, s3_server: S3Server
) -> Place:
    if request.param == "local":
        return Place(tmp_path, model, None)
    name = f"inputs-{uuid4().hex}"
    s3_server.create_bucket(name)
    settings = S3Settings(
        endpoint_url=s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    return Place(tmp_path, model, open_s3(name, "", settings))


def test_another_calibration_text_counts(place: Place) -> None:
    with pytest.raises(Stopped):
        place.run(until="solve.0")
    place.write("calibration.txt", OTHER)
    place.run()
    assert "capture.0" in place.done
    # What does not depend on it stays.
    assert not {"model_check", "tokens.evaluation", "evaluate.dense"} & set(place.done)
    assert checkpoint_of(place.root / "out") == place.anew()
    files = (path for path in (place.root / "workspace/units").rglob("*") if path.is_file())
    attempts = Counter(path.parts[-3] for path in {p.parent / "file" for p in files})
    # Nothing is left of what was computed from the old text.
    assert {unit for unit, count in attempts.items() if count > 1} <= {"units"}


def test_another_evaluation_text_counts(place: Place) -> None:
    first = place.run()
    place.write("evaluation.txt", OTHER)
    shutil.rmtree(place.root / "out")
    second = place.run()
    assert set(place.done) == {
        "tokens.evaluation",
        "evaluate.dense",
        "evaluate.pruned",
        "report",
        "publish",
    }
    assert first.perplexity is not None
    assert second.perplexity is not None
    assert first.perplexity.text_sha256 != second.perplexity.text_sha256
    assert first.perplexity.before != second.perplexity.before
    assert Report.model_validate_json((place.root / "out/report.json").read_bytes()) == second


def test_the_same_text_again_changes_nothing(place: Place) -> None:
    with pytest.raises(Stopped):
        place.run(until="solve.0")
    place.write("calibration.txt", CALIBRATION)
    place.run()
    assert not {"tokens", "capture.0", "solve.0"} & set(place.done)


def test_a_text_that_keeps_its_size_and_time_is_noticed(tmp_path: Path, model: Path) -> None:
    place = Place(tmp_path, model, None)
    with pytest.raises(Stopped):
        place.run(until="solve.0")
    path = tmp_path / "calibration.txt"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(CALIBRATION.swapcase())
    os.utime(path, ns=times)
    place.run()
    assert "capture.0" in place.done
    assert checkpoint_of(tmp_path / "out") == place.anew()


@pytest.mark.parametrize("when", [0.0, 0.5])
@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_a_text_that_changes_during_the_job_fails_it(place: Place, name: str, when: float) -> None:
    written: list[float] = []

    def write(progress: Progress) -> None:
        if progress.fraction >= when and not written:
            written.append(progress.fraction)
            place.write(f"{name}.txt", OTHER)

    with pytest.raises(InvalidText, match="written again while the job ran") as caught:
        place.run(progress=write)
    assert caught.value.field == f"{name}.uri"
    assert not caught.value.retryable
    assert caught.value.remedy
    assert files_of(place.root / "out") == {}
    place.run()  # as a retry does
    assert checkpoint_of(place.root / "out") == place.anew()


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "config.json"])
def test_other_small_files_of_the_model_are_another_job(
    tmp_path: Path, model: Path, text_file: Path, name: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    spec = tiny_spec(copy, text_file, tmp_path / "out")
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopOnceFinished(tmp_path, "solve.0"))
    content = json.loads((copy / name).read_bytes())
    stat = (copy / name).stat()
    (copy / name).write_text(json.dumps(content, indent=7))
    os.utime(copy / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(WorkspaceMismatch):
        run(spec, tmp_path)


def test_what_units_depend_on_is_what_comes_before_them() -> None:
    for evaluate in (True, False):
        graph = build_graph(
            layers=3,
            shards=[[0, 1], [2]],
            energy="kl_probe",
            evaluate=evaluate,
            recover=True,
            rounds=2,
            exports=("gguf", "gguf_q8_0", "fp8", "block_configs"),
            export_shards={"fp8": [[0, 1, 2]], "block_configs": [[0, 1, 2]]},
            distill_steps=12,
        )
        before = ancestors([*graph, publication(graph)])
        for unit in graph:
            sources = before[unit.name] | {unit.name}
            wanted = {
                text
                for text, source in (
                    ("calibration.uri", "tokens"),
                    ("evaluation.uri", "tokens.evaluation"),
                )
                if source in sources
            }
            found = set(texts_behind(unit.name))
            assert wanted <= found, unit.name
            # What a job without tasks or evaluation has no version of, and nothing depends on.
            absent = {"evaluation.task_files"} | (set() if evaluate else {"evaluation.uri"})
            assert found - wanted <= absent, unit.name


def test_a_large_local_file_is_identified_by_size_time_and_ends(tmp_path: Path) -> None:
    path, store = tmp_path / "large", LocalStore(tmp_path)
    path.write_bytes(b"\0" * (WHOLE_BYTES + 2 * END_BYTES))

    def version() -> str:
        info = store.stat("large")
        assert isinstance(info, ObjectInfo)
        return version_of(store, info)

    versions = {version()}
    stat = path.stat()
    for place in (0, -1):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        versions.add(version())
    os.utime(path, ns=(1, 1))
    versions.add(version())
    path.write_bytes(path.read_bytes() + b"\0")
    versions.add(version())
    assert len(versions) == 5
