"""Jobs on the tiny model that a test file names `model`, and what one makes undisturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strucprune_core.calibration import text_process
from strucprune_core.spec import JobSpec


@pytest.fixture(scope="module", autouse=True)
def forked_text_process() -> Iterator[None]:
    """Jobs fork the process that reads their texts, which is most of what a tiny job takes."""
    from tests.support.forked_text import ForkedProcess

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_process, "_start", ForkedProcess)
        yield


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, model: Path, text_file: Path
) -> dict[str, bytes]:
    """The checkpoint of a run that was alone and that nothing disturbed."""
    # Imported here: it brings torch, which many tests do without.
    from tests.core.jobs.tiny_job import checkpoint_of, run, tiny_spec

    root = tmp_path_factory.mktemp("expected")
    run(tiny_spec(model, text_file, root / "out"), root)
    return checkpoint_of(root / "out")


@pytest.fixture
def spec(tmp_path: Path, model: Path, text_file: Path) -> JobSpec:
    """The same job, with an output of its own."""
    from tests.core.jobs.tiny_job import tiny_spec

    return tiny_spec(model, text_file, tmp_path / "out")
