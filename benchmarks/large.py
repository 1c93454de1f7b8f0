"""A large model pruned from object storage to object storage under a limit of host memory.

    .venv/bin/python -m benchmarks.large --json benchmarks/results/large.json  # 7B: hours
    .venv/bin/python -m benchmarks.large --layers 2                            # two of its layers
    .venv/bin/python -m benchmarks.large --shape llama-3-70b --plan-only

Random bfloat16 weights are made file by file and put into the embedded S3 server, so the disk holds
them once. `strucprune prune` reads from there, and keeps its workspace and writes there. Its
anonymous resident memory is sampled from outside. Prints seconds by kind of unit, the peak and the
plan.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic import ByteSize, TypeAdapter

from benchmarks.memory_scaling import LLAMA, OPT, raw_config
from benchmarks.output import write_result
from benchmarks.random_model import save_empty_model, save_random_model
from embedded.s3 import REGION, S3Server
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import REPORT_JSON, Report
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store

BUCKET = "work"
SAMPLE_SECONDS = 0.05


def main() -> int:
    """Plan, make, prune, report."""
    options = _parse(sys.argv[1:])
    raw = raw_config(options.shape)
    if options.layers:
        raw["num_hidden_layers"] = options.layers
    result = {"shape": options.shape, "layers": raw["num_hidden_layers"], **_plan(options, raw)}
    if not options.plan_only:
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            result |= _run(options, raw, Path(folder))
    print(json.dumps(result, indent=2))
    write_result(options.json, result)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=[*OPT, *LLAMA], default="llama-7b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--host-memory", default="3GiB")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--directory", type=Path, help="where 30 GB are free; the system's if none")
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--json", type=Path, help="where the result goes")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """What the job will take."""
    limit = int(TypeAdapter(ByteSize).validate_python(options.host_memory))
    spec = JobSpec.model_validate(
        {
            "model": {"uri": "s3://work/model"},
            "output": {"uri_prefix": "s3://work/out"},
            "pruning": {"sparsity": 0.3, "energy": "forward"},
            "calibration": {
                "uri": "s3://work/text.txt",
                "samples": options.samples,
                "sequence_length": options.sequence_length,
            },
            "runtime": {"device": "cpu", "host_memory_bytes": limit},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        save_empty_model(Path(folder) / "model", raw)
        facts = inspect_model(LocalStore(Path(folder) / "model"))
        estimate = estimate_job(spec, facts)
    return {"host_limit_bytes": limit, "estimate": estimate.model_dump()}


def _run(options: argparse.Namespace, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    with S3Server(folder / "s3") as server:
        server.create_bucket(BUCKET)
        client = server.client()
        began = time.monotonic()

        def move(path: Path) -> None:
            client.upload_file(str(path), BUCKET, f"model/{path.name}")
            path.unlink()
            print(f"made {path.name}", file=sys.stderr, flush=True)

        text = save_random_model(folder / "model", raw, written=move)
        for path in (folder / "model").iterdir():
            move(path)
        client.upload_file(str(text), BUCKET, "text.txt")
        made = time.monotonic() - began
        environment = {
            **os.environ,
            "STRUCPRUNE_S3_ENDPOINT_URL": server.endpoint_url,
            "STRUCPRUNE_S3_REGION": REGION,
            "STRUCPRUNE_S3_ACCESS_KEY_ID": server.access_key_id,
            "STRUCPRUNE_S3_SECRET_ACCESS_KEY": server.secret_access_key,
        }
        began = time.monotonic()
        peak = _watch(_command(options), environment)
        settings = S3Settings.from_environment(environment)
        workspace = open_store(f"s3://{BUCKET}/workspace", settings)
        return {
            "seconds_to_make": round(made, 1),
            "seconds": round(time.monotonic() - began, 1),
            "seconds_by_kind": _seconds(workspace),
            "host_peak_bytes": peak,
            "memory": _reported_memory(open_store(f"s3://{BUCKET}/out", settings)),
        }


def _command(options: argparse.Namespace) -> list[str]:
    return [
        *(sys.executable, "-m", "strucprune_core.commands.main", "prune", f"s3://{BUCKET}/model"),
        *("--output", f"s3://{BUCKET}/out", "--workspace", f"s3://{BUCKET}/workspace"),
        *("--sparsity", "0.3", "--energy", "forward"),
        *("--calibration", f"s3://{BUCKET}/text.txt"),
        *("--samples", str(options.samples)),
        *("--sequence-length", str(options.sequence_length)),
        *("--device", "cpu", "--host-memory", options.host_memory, "--json"),
    ]


def _watch(command: list[str], environment: dict[str, str]) -> int:
    """Run it; the peak of its anonymous resident memory."""
    peak = 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"strucprune ended with {process.returncode}")
    return peak


def _reported_memory(output: Store) -> dict[str, Any]:
    """Planned and measured peaks, as the report has them."""
    report = Report.model_validate_json(bytes(output.read(REPORT_JSON)))
    return report.memory.model_dump()


def _seconds(workspace: Store) -> dict[str, float]:
    """Seconds of all units of a kind."""
    found: defaultdict[str, float] = defaultdict(float)
    for info in workspace.list("units/"):
        if info.key.endswith("manifest.json"):
            manifest = json.loads(bytes(workspace.read(info.key)))
            found[manifest["unit"].partition(".")[0]] += manifest["seconds"]
    return {kind: round(seconds, 1) for kind, seconds in sorted(found.items())}


if __name__ == "__main__":
    sys.exit(main())
