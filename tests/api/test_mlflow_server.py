"""Jobs logged to a real MLflow server: once, whatever dies or does not answer meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from api.jobs.journal import Journal
from api.jobs.ledger import Ledger
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.mlflow.content import JOB_ID, SIZE, RunContent, contents_of
from api.mlflow.figures import Figures, read_figures
from api.mlflow.marks import Marks
from api.mlflow.recorder import Recorder
from api.mlflow.server import MlflowServer, NotLogged
from embedded.processes import ManagedProcess
from embedded.stack import ROOT
from strucprune_core.report.sizes import AnyReport
from strucprune_core.storage.local import LocalStore
from tests.support.claims import claim_job
from tests.support.ended_jobs import (
    ERROR,
    entry_of,
    failed,
    publish,
    report_of_one,
    succeeded,
)
from tests.support.flaky_proxy import FlakyProxy
from tests.support.mlflow_server import MlflowServerProcess
from tests.support.reports import made_sizes

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServerProcess]:
    with MlflowServerProcess(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def proxy(process: MlflowServerProcess) -> Iterator[FlakyProxy]:
    with FlakyProxy(process.port) as before:
        yield before


@pytest.fixture
def server(process: MlflowServerProcess) -> MlflowServer:
    return MlflowServer(process.url)


@pytest.fixture
def mlflow(process: MlflowServerProcess, server: MlflowServer) -> Any:
    """A client of the tests' own, made once ours is configured."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(process.url)


@pytest.fixture
def experiment() -> str:
    return f"strucprune/{uuid4().hex}"


def contents(report: AnyReport, output: Path, job_id: str, **spec: Any) -> list[RunContent]:
    figures = read_figures(report.model_dump_json().encode())
    assert figures is not None
    entry = entry_of(output, **spec)
    return contents_of(job_id, entry, succeeded(report), figures, entry.created_at)


def of_sizes(output: Path, job_id: str) -> list[RunContent]:
    return contents(made_sizes(), output, job_id, pruning={"sizes": [0.2, 0.3, 0.5]})


def reader(output: Path) -> Callable[[str], bytes | None]:
    def read(key: str) -> bytes | None:
        path = output / key
        return path.read_bytes() if path.exists() else None

    return read


def never() -> None:
    """Nothing happens before a request."""


def runs(mlflow: Any, experiment: str) -> list[Any]:
    found = mlflow.get_experiment_by_name(experiment)
    return [*mlflow.search_runs([found.experiment_id])] if found else []


def artifact(mlflow: Any, run: Any, name: str, folder: Path) -> str:
    path = mlflow.download_artifacts(run.info.run_id, name, str(folder))
    return Path(path).read_text(encoding="utf-8")


def check_whole(mlflow: Any, experiment: str, wanted: list[RunContent]) -> None:
    """Each run is there once, with all that belongs to it."""
    found = {run.data.tags[SIZE]: run for run in runs(mlflow, experiment)}
    assert len(found) == len(runs(mlflow, experiment)) == len(wanted)
    for content in wanted:
        run = found[content.size]
        assert run.info.status == ("FAILED" if content.failed else "FINISHED")
        assert (run.info.start_time, run.info.end_time) == (content.started_ms, content.ended_ms)
        assert run.data.params == content.params
        assert run.data.metrics == pytest.approx(content.metrics)
        assert content.tags.items() <= run.data.tags.items()
        below = run.data.tags.get("mlflow.parentRunId")
        assert below == (found[""].info.run_id if content.size else None)
        names = {each.path for each in mlflow.list_artifacts(run.info.run_id)}
        assert names == {key.rpartition("/")[2] for key in content.documents}


def test_one_size(mlflow: Any, server: MlflowServer, experiment: str, tmp_path: Path) -> None:
    report, output = report_of_one(), tmp_path / "out"
    publish(output, report)
    wanted = contents(report, output, "job_1")
    for _ in range(2):
        server.log(experiment, wanted, reader(output), never)
        check_whole(mlflow, experiment, wanted)
    (run,) = runs(mlflow, experiment)
    assert json.loads(artifact(mlflow, run, "report.json", tmp_path)) == report.model_dump(
        mode="json"
    )
    page = artifact(mlflow, run, "report.html", tmp_path)
    assert page.startswith('<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="')
    assert page.endswith("page of ")
    assert artifact(mlflow, run, "README.md", tmp_path) == "card of "


def test_a_death_at_any_request(
    mlflow: Any, server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    """Of a job of two sizes, one of them rejected. Whoever comes next completes it."""
    output = tmp_path / "out"
    publish(output, made_sizes())
    for last in count():
        job, size, _, rejected = of_sizes(output, f"job_{last}")
        name, wanted = f"{experiment}-{last}", [job, size, rejected]
        left = iter(range(last))

        def die_after(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        try:
            server.log(name, wanted, reader(output), die_after)
        except KeyboardInterrupt:
            # Each of the first steps, which repeat for every size, then every sixth.
            if last > 8 and last % 6:
                continue
            server.log(name, wanted, reader(output), never)
        else:
            check_whole(mlflow, name, wanted)
            break
        check_whole(mlflow, name, wanted)
    assert last > 20


def test_the_example_finds_the_sizes(
    process: MlflowServerProcess, server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    """docs/examples/mlflow_run.py, as it stands there."""
    wanted = of_sizes(tmp_path / "out", "job_of_the_example")
    server.log(experiment, wanted, lambda _: None, never)
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/examples/mlflow_run.py"), "job_of_the_example"],
        env={**os.environ, "MLFLOW_TRACKING_URI": process.url, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = {tuple(line.split()[1:]) for line in done.stdout.splitlines()}
    size = f"{made_sizes().before.parameters}"
    out = tmp_path / "out"
    assert told == {(f"{out}/0.2", size, "1.200"), (f"{out}/0.3", size, "1.300")}


def test_two_at_once(
    mlflow: Any, process: MlflowServerProcess, experiment: str, tmp_path: Path
) -> None:
    """As after a pause that was longer than a role lasts: both create a run before either looks."""
    output = tmp_path / "out"
    publish(output, report_of_one())
    wanted = contents(report_of_one(), output, "job_1")
    servers = [MlflowServer(process.url) for _ in range(2)]
    servers[0]._client.create_experiment(experiment)
    created = threading.Barrier(2)

    def log(server: MlflowServer) -> None:
        create = server._client.create_run

        def create_together(*arguments: Any, **more: Any) -> Any:
            made = create(*arguments, **more)
            created.wait(20)
            return made

        server._client.create_run = create_together
        find = server._found

        def found_none(*arguments: Any) -> Any:
            server._found = find  # type: ignore[method-assign]
            return []

        server._found = found_none  # type: ignore[method-assign, assignment]
        # Whoever meets the other one's changes tries again later.
        with contextlib.suppress(NotLogged):
            server.log(experiment, wanted, reader(output), never)

    threads = [threading.Thread(target=log, args=(each,)) for each in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(runs(mlflow, experiment)) <= 2
    for each in servers:
        each.log(experiment, wanted, reader(output), never)
    check_whole(mlflow, experiment, wanted)


def test_sizes_are_below_the_run_that_stays(
    mlflow: Any, server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    """A size was logged whole below a run that another process then deleted."""
    output = tmp_path / "out"
    publish(output, made_sizes())
    wanted = of_sizes(output, "job_1")
    server.log(experiment, wanted, reader(output), never)
    (job,) = [run for run in runs(mlflow, experiment) if run.data.tags[SIZE] == ""]
    mlflow.delete_run(job.info.run_id)
    server.log(experiment, wanted, reader(output), never)
    check_whole(mlflow, experiment, wanted)


def test_names_and_numbers_at_their_limits(
    mlflow: Any, server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    """MLflow's own rules: lengths, characters, entries of a request."""
    names = ["../../etc/passwd", "/", "..", "", "a\n<x>\x00", "ü" * 500, "'; drop", "`"]
    tasks = [
        {"task": task, "metrics": [{"name": name, "value": 1e308} for name in names]}
        for task in [*names, *map(str, range(100))]
    ]
    figures = read_figures(json.dumps({"tasks": {"dense": tasks}}).encode())
    assert figures is not None
    labels = {f"{number}{'l' * 60}": "v" * 255 for number in range(50)} | {"'`\"": "\U0001f600"}
    entry = entry_of(
        tmp_path / ("o" * 200),
        labels=labels,
        pruning={"sparsity": 0.3, "max_sparsity_by_layer": dict.fromkeys(range(400), 0.5)},
    )
    outcome = succeeded(report_of_one())
    wanted = contents_of("job_1", entry, outcome, figures, entry.created_at)
    assert (len(wanted[0].metrics), len(wanted[0].params)) == (500, 300)
    server.log(experiment, wanted, lambda key: None, never)
    (run,) = runs(mlflow, experiment)
    assert run.data.params == wanted[0].params
    assert len(run.data.metrics) == 500


@pytest.mark.parametrize(
    "place", ["file:///tmp/elsewhere", "s3://bucket/state", "mlflow-artifacts://evil.example:80/x"]
)
def test_artifacts_go_to_the_server_alone(
    mlflow: Any, server: MlflowServer, experiment: str, tmp_path: Path, place: str
) -> None:
    """Whoever may create experiments chooses where their artifacts lie."""
    publish(tmp_path / "out", report_of_one())
    mlflow.create_experiment(experiment, artifact_location=place)
    wanted = contents(report_of_one(), tmp_path / "out", "job_1")
    with pytest.raises(NotLogged, match="let the server serve artifacts") as caught:
        server.log(experiment, wanted, reader(tmp_path / "out"), never)
    assert caught.value.rejected
    assert [run.info.status for run in runs(mlflow, experiment)] == ["RUNNING"]
    assert not Path("/tmp/elsewhere").exists()


def test_an_experiment_that_is_deleted(
    mlflow: Any, server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    mlflow.delete_experiment(mlflow.create_experiment(experiment))
    with pytest.raises(NotLogged, match="restore it") as caught:
        server.log(
            experiment, contents(report_of_one(), tmp_path, "job_1"), reader(tmp_path), never
        )
    assert caught.value.rejected


def test_an_outage_delays_and_loses_nothing(
    mlflow: Any,
    proxy: FlakyProxy,
    experiment: str,
    tmp_path: Path,
    ledger: Ledger,
    journal: Journal,
) -> None:
    """Through the journal and the ledger, with a retry and a failure; Redis forgets in between."""
    now = [0.0]
    marks = Marks(LocalStore(tmp_path / "state"))
    recorder = Recorder(
        journal,
        ledger,
        marks,
        lambda uri: LocalStore(Path(uri)),
        MlflowServer(f"http://127.0.0.1:{proxy.port}"),
        experiment=experiment,
        clock=lambda: now[0],
    )
    stop = threading.Event()
    publish(tmp_path / "out", report_of_one())
    entry = entry_of(tmp_path / "out")
    journal.write_spec("job_a", entry)
    ledger.create(entry.as_new_job("job_a"))
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    recorder.step(stop)
    assert runs(mlflow, experiment) == []
    proxy.down = True
    ended = failed()
    journal.write_outcome("job_a", ended)
    ledger.finish("job_a", claim.fence, JobState.FAILED, error=ended.error)
    before = proxy.connections
    for _ in range(3):
        recorder.step(stop)
    assert proxy.connections == before + 1  # the others wait for the pause to end
    ledger.forget("job_a")
    now[0] += 5.1
    recorder.step(stop)
    assert proxy.connections == before + 2
    proxy.down = False
    now[0] += 5.1
    recorder.step(stop)
    assert runs(mlflow, experiment) == []  # the second pause is twice as long
    now[0] += 5.1
    recorder.step(stop)
    (run,) = runs(mlflow, experiment)
    began = run.info.start_time / 1000
    check_whole(mlflow, experiment, contents_of("job_a", entry, ended, Figures(), began))
    assert [*marks.all()] == [("job_a", 1)]
    calls = proxy.connections
    now[0] += 1e6
    recorder.step(stop)
    assert proxy.connections == calls


def test_a_server_that_takes_connections_and_says_nothing(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, and left after the time that MLflow's own variable says."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = MlflowServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        wanted = contents(report_of_one(), tmp_path, "job_1")
        with pytest.raises(NotLogged, match="timed out") as caught:
            silent.log(experiment, wanted, lambda _: None, never)
        assert not caught.value.rejected
        listener.accept()[0].close()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_reconciler_logs_jobs(
    mlflow: Any, process: MlflowServerProcess, experiment: str, tmp_path: Path, flush: redis.Redis
) -> None:
    """The program as it is run, from its settings to its end."""
    journal = Journal(LocalStore(tmp_path / "state"))
    entry, ended = entry_of(tmp_path / "out"), failed()
    journal.write_spec("job_a", entry)
    journal.write_outcome("job_a", ended)
    connection = flush.connection_pool.connection_kwargs
    environment = {
        **os.environ,
        "STRUCPRUNE_REDIS_URL": (
            f"redis://:{connection['password']}@{connection['host']}:{connection['port']}"
            f"/{connection['db']}"
        ),
        "STRUCPRUNE_STATE_URI": str(tmp_path / "state"),
        "STRUCPRUNE_KEY_PEPPER": "pepper-of-the-tests",
        "STRUCPRUNE_MLFLOW_TRACKING_URI": process.url,
        "STRUCPRUNE_MLFLOW_EXPERIMENT": f"{experiment}-{{tenant}}",
    }
    program = ManagedProcess(
        "reconciler",
        [sys.executable, "-m", "api.reconciler"],
        log_directory=tmp_path,
        env=environment,
        cwd=ROOT,
    )
    try:
        program.wait_ready(lambda: (tmp_path / "state/mlflow/job_a/1.json").exists())
    finally:
        program.stop()
    (run,) = runs(mlflow, f"{experiment}-acme")
    assert (run.info.status, run.data.tags[JOB_ID]) == ("FAILED", "job_a")
    assert run.data.tags["strucprune.error.remedy"] == ERROR["remedy"]
    assert "job_a: logged to MLflow" in program.log_tail()


_ALONE = """
import sys
opened, connected = [], []

def watch(event, arguments):
    if event == "open" and arguments[1] and set(str(arguments[1])) & set("wax+"):
        opened.append(str(arguments[0]))
    if event in ("socket.connect", "socket.getaddrinfo"):
        connected.append(repr(arguments[-1] if event == "socket.connect" else arguments[:2]))

sys.addaudithook(watch)
from pathlib import Path
from api.mlflow.content import contents_of
from api.mlflow.figures import Figures
from api.mlflow.server import MlflowServer
from tests.support.ended_jobs import entry_of, report_of_one, succeeded
uri, experiment, output = sys.argv[1:]
entry = entry_of(Path(output))
contents = contents_of("job_1", entry, succeeded(report_of_one()), Figures(), 0.0)
server = MlflowServer(uri)
server.log(experiment, contents, lambda key: Path(output, key).read_bytes(), lambda: None)
import json
print(json.dumps({"opened": opened, "connected": connected}))
"""


def test_the_client_writes_and_calls_nothing_else(
    mlflow: Any, process: MlflowServerProcess, experiment: str, tmp_path: Path
) -> None:
    """No telemetry, no files but temporary ones; in a process that is not known as a test."""
    home, scratch, output = tmp_path / "home", tmp_path / "scratch", tmp_path / "out"
    publish(output, report_of_one())
    for folder in (home, scratch):
        folder.mkdir()
    kept = {name: text for name, text in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(home),
        "TMPDIR": str(scratch),
    }
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, process.url, experiment, str(output)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    own = (str(scratch), "/dev/null")
    assert [name for name in seen["opened"] if not name.startswith(own)] == []
    assert {each for each in seen["connected"] if str(process.port) not in each} == set()
    assert seen["connected"]
    assert [*home.iterdir()] == [*scratch.iterdir()] == []
    (run,) = runs(mlflow, experiment)
    assert run.data.tags[JOB_ID] == "job_1"
    assert run.info.status == "FINISHED"
