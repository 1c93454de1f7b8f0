"""The command with models on a hub, in processes of its own: as a user has it.

`tests.support.hub_server` stands in for huggingface.co; the command finds it by HF_ENDPOINT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import Hub


@pytest.fixture
def strucprune(hub: Hub, tmp_path: Path) -> Any:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": next(iter(hub.tokens)),
        "HF_HUB_DISABLE_XET": "1",
    }

    def call(*arguments: str | Path, **variables: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "strucprune_core.commands.main", *map(str, arguments), "--json"],
            capture_output=True,
            text=True,
            env={**environment, **variables},
            check=False,
        )
        assert done.stdout, done.stderr
        body: dict[str, Any] = json.loads(done.stdout)
        return body

    return call


def test_from_a_hub_and_back(
    strucprune: Any, hub: Hub, tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    hub.add("acme/tiny", tiny_model, private=True)
    hub.add("datasets/acme/prose", {"prose.txt": text_file.read_bytes()})
    uri = f"hf://acme/tiny@{hub.repos['acme/tiny'].branches['main']}"
    text = "hf://datasets/acme/prose/prose.txt"
    assert strucprune("inspect", "hf://acme/tiny")["model"] == uri
    report = strucprune(
        *("prune", "hf://acme/tiny", "--output", tmp_path / "out", "--sparsity", "0.3"),
        *("--calibration", text, "--samples", "8", "--sequence-length", "32"),
    )
    assert report["model"]["uri"] == uri
    published = strucprune("publish", tmp_path / "out", "hf://acme/small")
    head = hub.repos["acme/small"].head()
    assert published["uri"] == f"hf://acme/small@{hub.repos['acme/small'].branches['main']}"
    assert head["report.json"] == (tmp_path / "out/report.json").read_bytes()
    verified = strucprune("verify", "hf://acme/small")
    assert (verified["valid"], verified["checkpoint"]) == (True, published["uri"])
    options = ("--text", text, "--sequences", "2", "--sequence-length", "32")
    assert strucprune("evaluate", "hf://acme/small", *options)["perplexity"] > 1


def test_refusals(strucprune: Any, hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    hub.add("acme/tiny", tiny_model, private=True)
    for arguments, variables, words in (
        (("inspect", "acme/tiny"), {}, "use hf://acme/tiny"),
        (("inspect", "hf://acme/none"), {}, "no such repository"),
        (("inspect", "hf://acme/tiny"), {"HF_TOKEN": ""}, "HF_TOKEN"),
        (("inspect", "hf://acme/tiny"), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (("publish", tmp_path, "hf://acme/small"), {}, "strucprune.json"),
        (("publish", tmp_path, "hf://small"), {}, "TARGET"),
        (("publish", tmp_path, "s3://me/small"), {}, "Write it as hf://org/name."),
    ):
        error = strucprune(*arguments, **variables)["error"]
        assert words in f"{error['field']} {error['message']} {error['remedy']}", error
