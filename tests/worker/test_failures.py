"""Failures of a solve as the job's record shows them."""

from __future__ import annotations

import errno
import os

import pytest

from strucprune_core.errors import InvalidSpec
from worker.failures import as_ours


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_fault_of_the_jobs(code: int) -> None:
    """Another worker, or this one later, may have room."""
    failure = as_ours(OSError(code, os.strerror(code), "/scratch/secret-name"))
    assert (failure.code, failure.retryable) == ("scratch_unavailable", True)
    assert "secret-name" not in str(failure)


def test_what_is_not_known_is_final_and_not_quoted() -> None:
    failure = as_ours(OSError(errno.EACCES, "Permission denied", "/scratch/secret-name"))
    assert (failure.code, failure.retryable) == ("internal_error", False)
    assert "secret-name" not in str(failure)
    known = InvalidSpec("no")
    assert as_ours(known) is known
    assert as_ours(MemoryError()).code == "out_of_memory"
