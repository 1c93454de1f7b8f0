"""The running API against its own OpenAPI document, by schemathesis with all of its checks.

    python -m tests.contract SCHEMATHESIS [its options ...]

Starts a real Valkey and the API on a real server, and runs the program SCHEMATHESIS (it lives in an
environment of its own, see `make contract`) against it. The status is that program's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from api.app import create_app
from api.settings import ApiKey, Settings
from embedded.valkey import ValkeyServer
from strucprune_core.access.keys import hash_key, new_key
from tests.api.serving import served
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

PEPPER = "pepper-of-the-contract"
CONFIG = Path(__file__).with_name("schemathesis.toml")


def main(schemathesis: str, options: list[str]) -> int:
    """Run it; the exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="strucprune-") as name,
        ValkeyServer(Path(name) / "valkey") as valkey,
    ):
        root, key = Path(name), new_key(PEPPER)
        settings = Settings(
            redis_url=valkey.url,
            state_uri=str(root / "state"),
            key_pepper=SecretStr(PEPPER),
            api_keys=(ApiKey(tenant="acme", key_hmac=hash_key(key, PEPPER)),),
            allow_local_files=True,
        )
        with served(create_app(settings)) as port:
            url = f"http://127.0.0.1:{port}"
            _submit_some(url, key, root)
            command = [schemathesis, "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
            header = ["-H", f"Authorization: Bearer {key}"]
            return subprocess.run([*command, *header, *options], check=False, cwd=root).returncode


def _submit_some(url: str, key: str, root: Path) -> None:
    """Jobs to be found in lists, one of them over."""
    model = make_tiny_llama(root / "model")
    (root / "text.txt").write_text(make_text(), encoding="utf-8")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        for number in range(3):
            job = client.post("/v1/pruning-jobs", json=_body(root, model, number))
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
