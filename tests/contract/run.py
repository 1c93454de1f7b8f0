"""One run of schemathesis, with all of its checks, against the running API."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from api.settings import ApiKey, Settings
from strucprune_core.access.keys import hash_key
from tests.support.serving import served
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

PEPPER = "pepper-of-the-contract"
CONFIG = Path(__file__).with_name("schemathesis.toml")


def settings(root: Path, redis_url: str, key: str) -> Settings:
    """Of an API whose one key is `key`."""
    return Settings(
        redis_url=redis_url,
        state_uri=str(root / "state"),
        key_pepper=SecretStr(PEPPER),
        api_keys=(ApiKey(tenant="acme", key_hmac=hash_key(key, PEPPER)),),
        allow_local_files=True,
    )


def run(app: FastAPI, key: str, root: Path, options: Sequence[str]) -> int:
    """Serve the app and run schemathesis on it; its exit status.

    Args:
        app: Made of `settings`, perhaps with something wrong in it.
        key: What it is called with.
        root: An empty directory for models, texts and what schemathesis writes.
        options: Schemathesis' own.
    """
    model = make_tiny_llama(root / "model")
    (root / "text.txt").write_text(make_text(), encoding="utf-8")
    _show_an_example(app, _body(root, model, 0))
    with served(app) as port:
        url = f"http://127.0.0.1:{port}"
        _submit_some(url, key, [_body(root, model, number) for number in (1, 2, 3)])
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
        header = ["-H", f"Authorization: Bearer {key}"]
        call = [*command, "run", f"{url}/openapi.json", *header, *options]
        return subprocess.run(call, check=False, cwd=root).returncode


def _show_an_example(app: FastAPI, body: dict[str, Any]) -> None:
    """Put a job that works into the document: no generated one names a model that exists."""
    for path in ("/v1/pruning-jobs", "/v1/pruning-jobs/validate"):
        content = app.openapi()["paths"][path]["post"]["requestBody"]["content"]
        content["application/json"]["example"] = body


def _submit_some(url: str, key: str, bodies: Sequence[dict[str, Any]]) -> None:
    """Jobs to be found in lists, the last of them over."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        for body in bodies:
            job = client.post("/v1/pruning-jobs", json=body)
            job.raise_for_status()
        client.post(job.json()["links"]["cancel"]).raise_for_status()


def _body(root: Path, model: Path, number: int) -> dict[str, Any]:
    return {
        "model": {"uri": str(model)},
        "output": {"uri_prefix": str(root / f"output-{number}")},
        "pruning": {"sparsity": 0.25},
        "calibration": {
            "uri": str(root / "text.txt"),
            "samples": 4,
            "sequence_length": 32,
        },
        "labels": {"team": "nlp"},
    }
