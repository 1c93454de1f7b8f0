"""The real model through the real stack, with little calibration text."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from embedded.stack import WORK_BUCKET, Stack
from embedded.text import ensure_texts
from strucprune_core.client import StrucPruneClient

# SmolLM2 takes minutes on a small machine.
_TIMEOUT_SECONDS = 1200


@pytest.mark.services
@pytest.mark.real_model
@pytest.mark.timeout(_TIMEOUT_SECONDS)
def test_smollm2_survives_moderate_pruning(
    stack: Stack, client: StrucPruneClient, smollm2: Path, tmp_path: Path
) -> None:
    texts = ensure_texts(tmp_path)
    s3 = stack.s3.client()
    for path in smollm2.iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"smollm2/{path.name}")
    for path in (texts.calibration, texts.evaluation):
        s3.upload_file(str(path), WORK_BUCKET, path.name)
    job = client.submit(
        {
            "model": {"uri": f"s3://{WORK_BUCKET}/smollm2"},
            "output": {"uri_prefix": f"s3://{WORK_BUCKET}/output/{uuid4().hex}"},
            "pruning": {"sparsity": 0.2},
            "calibration": {
                "uri": f"s3://{WORK_BUCKET}/calibration.txt",
                "samples": 4,
                "sequence_length": 128,
            },
            "evaluation": {
                "uri": f"s3://{WORK_BUCKET}/evaluation.txt",
                "sequences": 2,
                "sequence_length": 256,
            },
        }
    )
    job = client.wait(job.id)
    assert job.error is None
    report = client.report(job.id)
    assert report["sparsity"]["reached"] == pytest.approx(0.2, abs=0.01)
    assert report["after"]["parameters"] < report["before"]["parameters"]
    # Far from what a real calibration gives; a broken one gives thousands.
    assert report["perplexity"]["ratio"] < 4.0
