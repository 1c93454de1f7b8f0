"""What the demo prints is there to be copied: the shell takes it, and the README's job fits it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from embedded.demo import access, job_spec
from embedded.stack import Stack
from strucprune_core.spec import JobSpec

README = Path(__file__).parents[2] / "README.md"


def test_the_exports_are_shell(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    exports = [line for line in access(stack).splitlines() if line.startswith("export ")]
    script = "\n".join(
        [*exports, 'printf "%s\\n" "$URL" "$KEY" "$AWS_ENDPOINT_URL" "$AWS_SECRET_ACCESS_KEY"']
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        stack.api_url,
        stack.api_key,
        stack.s3.endpoint_url,
        stack.s3.secret_access_key,
    ]


def test_the_readmes_job_is_one_of_the_demos_stack() -> None:
    body = re.search(r"-d '(\{.*?\n *\})'", README.read_text(encoding="utf-8"), re.DOTALL)
    assert body is not None
    readme = JobSpec.model_validate(json.loads(body[1]))
    demo = JobSpec.model_validate(job_spec("pruned/x"))
    assert readme.model == demo.model
    assert readme.calibration.uri == demo.calibration.uri
    assert readme.evaluation is not None
    assert demo.evaluation is not None
    assert readme.evaluation.uri == demo.evaluation.uri
    assert readme.output.uri_prefix.startswith("s3://work/")
