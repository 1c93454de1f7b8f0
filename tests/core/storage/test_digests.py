from __future__ import annotations

import hashlib
from pathlib import Path

from strucprune_core.storage.digests import sha256_of, sha256_of_bytes


def test_a_file_and_its_bytes_have_the_same_digest(tmp_path: Path) -> None:
    data = b"x" * (3 << 20) + b"y"
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == sha256_of_bytes(data) == hashlib.sha256(data).hexdigest()
