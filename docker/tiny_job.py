"""A tiny model and texts, for a job that uses all file formats that the images can read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from embedded.stack import WORK_BUCKET
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama


def put_inputs(s3: Any, directory: Path) -> None:
    """Put the model and the texts into the bucket `work`.

    Args:
        s3: A boto3 client of the S3 server.
        directory: For the model, on its way there.
    """
    for path in make_tiny_llama(directory / "model").iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"model/{path.name}")
    text, documents = make_text(), io.BytesIO()
    parquet.write_table(pyarrow.table({"text": text.split("\n\n")}), documents)
    s3.put_object(Bucket=WORK_BUCKET, Key="text.txt", Body=text.encode())
    s3.put_object(Bucket=WORK_BUCKET, Key="text.parquet", Body=documents.getvalue())


def tiny_job(output: str = "pruned") -> dict[str, Any]:
    """A job specification on what `put_inputs` has put, with a prefix for its output."""
    uri = f"s3://{WORK_BUCKET}"
    return {
        "model": {"uri": f"{uri}/model"},
        "output": {"uri_prefix": f"{uri}/{output}"},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": f"{uri}/text.parquet", "samples": 16, "sequence_length": 32},
        "evaluation": {"uri": f"{uri}/text.txt", "sequences": 4, "sequence_length": 32},
        "runtime": {"device": "cpu"},
    }
