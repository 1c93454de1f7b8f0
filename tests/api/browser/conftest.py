"""The app on a real server with jobs in every state, and a page in a real browser."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import redis
from fastapi import FastAPI

from api.app import create_app
from api.jobs.ends import commit_end
from api.jobs.journal import JournalEntry
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.services import Services
from api.settings import Settings
from embedded.s3 import S3Server
from strucprune_core.report.document import ExportReport, PerplexitySummary, Report
from strucprune_core.report.sizes import AnyReport
from strucprune_core.run.progress import Phase, Progress
from strucprune_core.spec import JobSpec
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from tests.support.browser import enter, launched, watched_page
from tests.support.reports import make_layers, make_report
from tests.support.serving import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WEIGHTS = b"weights"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not longer than a module: as long as it runs, this thread has an event loop.
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    name = f"web-{uuid4().hex}"
    s3_server.create_bucket(name)
    return name


@pytest.fixture(scope="module")
def s3(s3_server: S3Server) -> S3Settings:
    return S3Settings(
        endpoint_url=s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )


@dataclass
class Jobs:
    """Brings jobs into states, as the API and a worker would."""

    services: Services
    prefix: str
    claims: dict[str, Claim] = field(default_factory=dict)

    def queued(
        self,
        model: str = "smollm2-135m",
        sparsity: float | None = 0.3,
        *,
        name: str | None = None,
        scratch_bytes: int = 1,
        pruning: dict[str, Any] | None = None,
        **labels: str,
    ) -> str:
        """A job that waits: `running` passes it over, having no scratch."""
        job_id = f"job_{uuid4().hex}"
        spec = JobSpec.model_validate(
            {
                "model": {"uri": f"{self.prefix}/models/{model}"},
                "output": {"uri_prefix": f"{self.prefix}/{job_id}"},
                "pruning": pruning_of(sparsity, pruning),
                "calibration": {"uri": f"{self.prefix}/text.txt"},
                "evaluation": {"uri": f"{self.prefix}/evaluation.txt"},
                "name": name,
                "labels": labels,
            }
        )
        entry = JournalEntry(
            tenant="acme",
            spec=spec,
            fingerprint=job_id,
            created_at=time.time(),
            scratch_bytes=scratch_bytes,
        )
        self.services.journal.write_spec(job_id, entry)
        self.services.ledger.create(entry.as_new_job(job_id))
        return job_id

    def running(self, phase: Phase = Phase.SOLVING, fraction: float = 0.41, **spec: Any) -> str:
        job_id = self.queued(scratch_bytes=0, **spec)
        claim = self.services.ledger.claim("worker", 600, free_bytes=0).claim
        assert isinstance(claim, Claim)
        assert claim.job_id == job_id
        self.claims[job_id] = claim
        self.progress(job_id, phase, fraction)
        return job_id

    def progress(self, job_id: str, phase: Phase, fraction: float) -> None:
        done = round(30 * fraction)
        before = [each for each in Phase if [*Phase].index(each) < [*Phase].index(phase)]
        steps = dict.fromkeys(before, (1, 1)) | {phase: (done, 30)}
        report = Progress(phase, done, 30, fraction, 130.0, steps)
        self.services.ledger.heartbeat(job_id, self.claims[job_id].fence, 600, report.as_dict())

    def layers(self, job_id: str, **columns: list[Any]) -> None:
        """Tell of layers what their leader would."""
        assert self.services.ledger.append_layers(job_id, self.claims[job_id].fence, [columns])

    def allocated(self, job_id: str, layers: int = 30) -> None:
        """Tell the dense sizes, energies and widths of so many layers; made up."""
        rows = [row.model_dump() for row in make_layers(layers)]
        names = ["index", "width_before", "width_after", "query_heads_before"]
        names += ["query_heads_after", "energy", "predicted_damage"]
        self.layers(job_id, **{name: [row[name] for row in rows] for name in names})

    def log(self, job_id: str, *messages: str) -> None:
        lines = [
            {"at": time.time(), "run": 1, "attempt": 1, "level": "INFO", "message": message}
            for message in messages
        ]
        assert self.services.ledger.append_logs(job_id, self.claims[job_id].fence, lines)

    def failed(self, message: str, **spec: Any) -> str:
        job_id = self.running(**spec)
        error = {
            "code": "numerical_failure",
            "message": message,
            "retryable": False,
            "phase": "solving",
            "layer": 12,
        }
        self._finish(job_id, JobState.FAILED, error=error)
        return job_id

    def succeeded(
        self, perplexity: float = 33.43, report: AnyReport | None = None, **spec: Any
    ) -> str:
        job_id = self.running(Phase.COMMITTING, 1.0, **spec)
        self.finish(job_id, report or made_report(perplexity, spec.get("sparsity", 0.3)))
        return job_id

    def finish(self, job_id: str, report: AnyReport) -> None:
        """Publish a result and end the job."""
        store = self.services.stores.open(f"{self.prefix}/{job_id}")
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        files = [{"name": "model.safetensors", "bytes": len(WEIGHTS), "sha256": digest}]
        store.put("model.safetensors", WEIGHTS)
        store.put("report.json", report.model_dump_json().encode())
        store.put("strucprune.json", json.dumps({"format_version": 1, "files": files}).encode())
        from worker.solve import summary_of  # imported here: it brings torch

        self._finish(job_id, JobState.SUCCEEDED, summary=summary_of(report))

    def _finish(self, job_id: str, state: Any, **ended: Any) -> None:
        assert self.services.ledger.finish(job_id, self.claims[job_id].fence, state, **ended)
        self.commit(job_id)

    def commit(self, job_id: str) -> None:
        """Put the end of a job into the journal."""
        record = self.services.ledger.get(job_id)
        assert record is not None
        commit_end(self.services.journal, self.services.ledger, record)


def pruning_of(sparsity: float | None, pruning: dict[str, Any] | None) -> dict[str, Any]:
    """A section of a job: it has the sparsity unless something else says how much goes."""
    given = pruning or {}
    says = {"sizes", "target", "expert_count"} & given.keys()
    return given if says else {"sparsity": sparsity, **given}


def made_report(perplexity: float, sparsity: float) -> Report:
    """One of a model with 30 layers; its figures are made up."""
    made = make_report(30)
    assert made.perplexity is not None
    before = made.perplexity.before
    changed = {**made.perplexity.model_dump(), "after": perplexity, "ratio": perplexity / before}
    export = ExportReport(
        name="gguf_q8_0",
        folder="gguf_q8_0",
        bytes=34_000_000,
        verification=made.verification,
        perplexity=perplexity + 0.5,
    )
    return made.model_copy(
        update={
            "exports": [export],
            "perplexity": PerplexitySummary.model_validate(changed),
            "sparsity": made.sparsity.model_copy(
                update={"requested": sparsity, "reached": sparsity}
            ),
        }
    )


@pytest.fixture
def app(settings: Settings, flush: redis.Redis, s3: S3Settings, bucket: str) -> FastAPI:
    state = f"s3://{bucket}/{uuid4().hex}/state"
    return create_app(settings.model_copy(update={"s3": s3, "state_uri": state}))


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """Where the app is served."""
    with served(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def jobs(app: FastAPI, url: str, bucket: str) -> Jobs:
    return Jobs(app.state.services, f"s3://{bucket}/{uuid4().hex}")


@pytest.fixture
def page(browser: Browser, url: str, keys: dict[str, str]) -> Iterator[Page]:
    """The list of jobs, with the key entered."""
    with watched_page(browser, url) as page:
        enter(page, keys["acme"])
        yield page


@pytest.fixture
def model_uri(tiny_model: Any, text_file: Any, s3: S3Settings, bucket: str) -> str:
    """A prefix on S3 with `model/` and `text.txt`."""
    uri = f"s3://{bucket}/input"
    store = open_store(uri, s3)
    for path in tiny_model.iterdir():
        store.put(f"model/{path.name}", path.read_bytes())
    store.put("text.txt", text_file.read_bytes())
    return uri
