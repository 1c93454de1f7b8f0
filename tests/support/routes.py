"""The routes of the API by what they show to whom, and how tests submit jobs to them.

Each route has a kind:

open      no key is needed, and the answer holds nothing of any tenant
common    a key is needed; the answer is the same for all tenants
own       about one job; other tenants get the answer for a job that does not exist
list      shows the caller's own jobs only
figures   shows numbers of the caller's tenant
operator  shows what the service does for all, to keys with the scope `admin`
create    makes something that only the caller sees
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import uuid4

from fastapi.testclient import TestClient

JOBS = "/v1/pruning-jobs"
JOB = f"{JOBS}/{{job_id}}"

Kind = Literal["open", "common", "own", "list", "create", "figures", "operator"]
KINDS: dict[tuple[str, str], Kind] = {
    ("GET", "/healthz"): "open",
    ("GET", "/readyz"): "open",
    ("GET", "/openapi.json"): "open",
    ("GET", "/docs"): "open",
    ("GET", "/v1/capabilities"): "common",
    ("GET", "/v1/models"): "common",
    ("GET", "/v1/quota"): "figures",
    ("GET", "/v1/workers"): "operator",
    ("GET", JOBS): "list",
    ("POST", JOBS): "create",
    ("POST", f"{JOBS}/validate"): "common",
    ("GET", JOB): "own",
    ("GET", f"{JOB}/events"): "own",
    ("GET", f"{JOB}/report"): "own",
    ("GET", f"{JOB}/artifacts"): "own",
    ("POST", f"{JOB}/cancel"): "own",
    ("POST", f"{JOB}/pause"): "own",
    ("POST", f"{JOB}/resume"): "own",
    ("POST", f"{JOB}/retry"): "own",
    ("GET", f"{JOB}/logs"): "own",
    ("DELETE", JOB): "own",
    ("GET", "/metrics"): "open",
    ("GET", "/"): "open",
    ("GET", "/static/{name}"): "open",
}


def elsewhere(body: dict[str, Any]) -> dict[str, Any]:
    """The same job with an output of its own: two that have not ended may not have one."""
    return {**body, "output": {"uri_prefix": f"{body['output']['uri_prefix']}-{uuid4().hex}"}}


def submit(client: TestClient, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """The accepted job."""
    answer = client.post(JOBS, json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job
