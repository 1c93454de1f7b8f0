"""The running API against its own OpenAPI document, by schemathesis with all of its checks.

    python -m tests.contract [schemathesis' options ...]

Starts a real Valkey and the API on a real server, and runs schemathesis against it. The status is
that program's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from api.app import create_app
from embedded.valkey import ValkeyServer
from strucprune_core.access.keys import new_key
from tests.contract.run import PEPPER, run, settings


def main(options: list[str]) -> int:
    """Run it; the exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="strucprune-") as name,
        ValkeyServer(Path(name) / "valkey") as valkey,
    ):
        root, key = Path(name), new_key(PEPPER)
        return run(create_app(settings(root, valkey.url, key)), key, root, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
