"""Jobs through the real service whose model and text lie on a hub.

`tests.support.hub_server` stands in for huggingface.co: API and workers find it by HF_ENDPOINT.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from strucprune_core.client import RequestInvalid, StrucPruneClient
from tests.integration.conftest import MakeSpec
from tests.support.hub_server import Hub

pytestmark = pytest.mark.services

TEXT = "hf://datasets/acme/prose/data/prose.txt"


def test_a_job_reads_the_commits_of_its_submission(
    client: StrucPruneClient,
    make_spec: MakeSpec,
    hub_of_the_stack: Hub,
    tiny_model: Path,
    text_file: Path,
) -> None:
    repo = hub_of_the_stack.add("acme/tiny", tiny_model, private=True)
    hub_of_the_stack.add("datasets/acme/prose", {"data/prose.txt": text_file.read_bytes()})
    commit = repo.branches["main"]
    spec, stored = make_spec(), make_spec()
    spec["model"]["uri"], spec["calibration"]["uri"] = "hf://acme/tiny", TEXT
    job = client.submit(spec, idempotency_key="from-a-hub")
    repo.push({"config.json": b"another model"})
    assert client.submit(spec, idempotency_key="from-a-hub").id == job.id
    ended = client.wait(job.id)
    assert (ended.state, ended.error) == ("succeeded", None)
    assert ended.spec["model"]["uri"] == f"hf://acme/tiny@{commit}"
    report = client.report(job.id)
    assert report["model"]["uri"] == f"hf://acme/tiny@{commit}"
    assert re.search(r"prose@[0-9a-f]{40}/data/", report["spec"]["calibration"]["uri"])
    same = client.wait(client.submit(stored).id)
    assert client.report(same.id)["perplexity"] == report["perplexity"]


def test_what_is_refused_at_submission(
    client: StrucPruneClient, make_spec: MakeSpec, hub_of_the_stack: Hub, tiny_model: Path
) -> None:
    hub_of_the_stack.add("rival/tiny", tiny_model)
    hub_of_the_stack.add("acme/gated", tiny_model, gated=True)
    for uri, words in (
        ("hf://rival/tiny", "may not read rival/tiny of a hub here.*hf://acme/*"),
        ("hf://acme/nothing", "no such repository"),
        ("hf://acme/gated@v9", "no such revision"),
    ):
        spec = make_spec()
        spec["model"]["uri"] = uri
        with pytest.raises(RequestInvalid, match=words):
            client.submit(spec)
    asked = [each for each in hub_of_the_stack.requests if "rival" in each.path]
    assert asked == []
