"""Who may import whom, read from the sources: the rules of DESIGN.md, kept."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import strucprune_core

ROOT = Path(__file__).parents[2]
PACKAGES = ("strucprune_core", "api", "worker", "embedded")
TORCH = {"torch", "transformers"}
# What the API image imports of the library, beside all of `plan`: it has no torch.
NO_TORCH = (
    "strucprune_core",
    "strucprune_core.access.key_store",
    "strucprune_core.client",
    "strucprune_core.client.webhooks",
    "strucprune_core.commands.jobs",
    "strucprune_core.commands.keys",
    "strucprune_core.spec",
    "strucprune_core.report.document",
    "strucprune_core.report.html",
    "strucprune_core.errors",
    "strucprune_core.storage.digests",
    "strucprune_core.run.layer_updates",
    "strucprune_core.run.progress",
    "strucprune_core.run.progress_meter",
    "strucprune_core.run.reservations",
    "strucprune_core.models.tiles",
    "strucprune_core.run.workspace",
    "strucprune_core.storage.metered",
    "strucprune_core.storage.open",
    "strucprune_core.storage.s3",
    "strucprune_core.calibration.jsonl",
    "strucprune_core.calibration.parquet",
    "strucprune_core.calibration.tokenizer_config",
    "strucprune_core.checkpoint.index",
    "strucprune_core.export.block_configs",
    "strucprune_core.export.checks",
    "strucprune_core.export.gguf_layout",
    "strucprune_core.export.gguf_sentencepiece",
    "strucprune_core.export.gguf_vocabulary",
    "strucprune_core.export.tokenizer_json",
    "strucprune_core.export.runtimes",
    "strucprune_core.models.config",
    "strucprune_core.models.families",
    "strucprune_core.models.structures",
    "strucprune_core.method.linalg.panels",
    "strucprune_core.method.allocation.softmax",
    "strucprune_core.method.allocation.threshold",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the product by name."""
    return {
        module_name(path): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def imports(module: str, *, at_load: bool = False) -> frozenset[str]:
    """Modules that a module imports; with `at_load` only those it needs to be imported itself."""
    tree = sources()[module]
    nodes = tree.body if at_load else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in sources() else node.module for name in names}
    return frozenset(found)


def modules(prefix: str) -> list[str]:
    return [name for name in sources() if name == prefix or name.startswith(prefix + ".")]


def within(name: str, *allowed: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def offences(users: list[str], forbidden: tuple[str, ...]) -> set[tuple[str, str]]:
    return {(user, name) for user in users for name in imports(user) if within(name, *forbidden)}


def load_closure(module: str) -> set[str]:
    """Everything that importing a module imports, parents' `__init__` included."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent in sources():
            todo.append(parent)
        if name in sources():
            todo += imports(name, at_load=True)
    return seen


def test_the_sources_are_found() -> None:
    assert {"strucprune_core.pipeline", "api.app", "worker.solve"} <= set(sources())
    assert "torch" in imports("strucprune_core.method.layer.ridge")


def test_planning_needs_no_torch() -> None:
    planning = modules("strucprune_core.plan")
    assert "strucprune_core.plan.graph" in planning
    for module in planning:
        assert not {name for name in load_closure(module) if within(name, *TORCH, "gguf")}, module


@pytest.mark.parametrize("module", NO_TORCH)
def test_core_without_torch(module: str) -> None:
    assert not {name for name in load_closure(module) if within(name, *TORCH, "gguf")}


def test_mathematics_does_no_io() -> None:
    own = "strucprune_core.method"
    assert len(modules(own)) > 20
    for module in modules(own):
        core = {name for name in imports(module) if within(name, "strucprune_core")}
        assert all(within(name, own, "strucprune_core.errors") for name in core), module
        assert not {name for name in imports(module) if within(name, "pathlib", "os", "boto3")}


def test_surgery_does_no_io() -> None:
    forbidden = ("strucprune_core.storage", "strucprune_core.run.workspace", "pathlib", "boto3")
    assert not offences(modules("strucprune_core.surgery"), forbidden)


def test_boto3_is_the_business_of_two_files() -> None:
    assert {user for user, _ in offences(list(sources()), ("boto3", "botocore"))} <= {
        "strucprune_core.storage.s3",
        "strucprune_core.storage.s3_connection",
        "embedded.s3",  # makes buckets on the embedded server
    }


def test_one_file_calls_the_tokenizers_library() -> None:
    # It alone turns what the library throws, panics too, into errors of ours.
    users = {user for user, _ in offences(list(sources()), ("tokenizers",))}
    assert {user for user in users if not within(user, "embedded")} == {
        "strucprune_core.calibration.tokenizer"
    }


def test_pickles_are_read_by_the_conversion_only() -> None:
    readers = {user for user, _ in offences(list(sources()), ("pickle",))}
    assert not readers
    users = offences(list(sources()), ("strucprune_core.checkpoint.pickled",))
    assert {user for user, _ in users} == {"strucprune_core.conversion"}


def test_the_library_knows_no_service() -> None:
    forbidden = ("api", "worker", "embedded", "celery", "redis", "fastapi")
    assert not offences(modules("strucprune_core"), forbidden)


def test_the_api_has_no_torch_and_no_worker() -> None:
    assert not offences(modules("api"), ("worker", "embedded", *TORCH))
    for module in modules("api"):
        assert not {name for name in load_closure(module) if within(name, *TORCH)}, module


def test_job_machinery_knows_no_web_framework() -> None:
    assert not offences(modules("api.jobs"), ("fastapi", "starlette"))
    for module in modules("api.jobs"):
        own = {name for name in imports(module) if within(name, "api")}
        assert all(within(name, "api.jobs") for name in own), module


def test_the_worker_knows_only_the_job_machinery_of_the_api() -> None:
    assert not offences(modules("worker"), ("fastapi", "starlette", "embedded"))
    for module in modules("worker"):
        of_api = {name for name in imports(module) if within(name, "api")}
        assert all(within(name, "api.jobs") for name in of_api), module


def test_only_the_solve_process_imports_torch() -> None:
    heavy = ("strucprune_core.pipeline", "torch", "transformers")
    assert {user for user, _ in offences(modules("worker"), heavy)} <= {"worker.solve"}


def test_there_are_no_circles() -> None:
    for start in sources():
        stack, seen = list(imports(start, at_load=True)), set[str]()
        while stack:
            name = stack.pop()
            assert name != start, f"{start} imports itself in a circle"
            if name in sources() and name not in seen:
                seen.add(name)
                stack += imports(name, at_load=True)


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, strucprune_core, strucprune_core.commands.main; "
        "import strucprune_core.plan.inspection; "
        "print(bool({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


def test_starting_a_job_loads_no_transformers() -> None:
    """It takes seconds and 100 MB, which a job of a written-out family needs late and in part."""
    code = "import sys, strucprune_core.pipeline; print('transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


def test_the_public_names() -> None:
    assert sorted(strucprune_core.__all__) == [
        "CalibrationSpec",
        "EvaluationSpec",
        "JobSpec",
        "ModelSpec",
        "OutputSpec",
        "PruningSpec",
        "Report",
        "RuntimeSpec",
        "SizesReport",
        "StrucPruneError",
        "__version__",
        "load_pretrained",
        "prune",
        "run_job",
    ]
    assert all(hasattr(strucprune_core, name) for name in strucprune_core.__all__)
