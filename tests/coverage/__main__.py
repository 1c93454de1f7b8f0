"""Which architectures of transformers can be pruned: found by pruning a tiny model of each.

    python -m tests.coverage [--only NAME ...]

Writes `architectures.json`, which the product reads, and docs/architectures.md. The status is 1 if
an architecture is refused for a reason that is not understood.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from typing import Any

_UNKNOWN = "it has not been tried successfully yet, and why is not known"
_NOT_BUILT = "it has not been tried yet: a tiny model of it could not be made"


def main(arguments: list[str]) -> int:
    """Examine architectures, and write what was found; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these, and keep the others")
    only = parser.parse_args(arguments).only
    with tempfile.TemporaryDirectory(prefix="strucprune-") as modules:
        os.environ["HF_MODULES_CACHE"] = modules  # Read when transformers is imported.
        return _examine_all(only)


def _examine_all(only: list[str] | None) -> int:
    import torch
    import transformers

    from strucprune_core.models.generic.architectures import table
    from tests.coverage.table import PAGE, TABLE, as_stored, generic_names, page

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    names = generic_names()
    entries = (
        {} if only is None else {n: e for n, e in table()["model_types"].items() if n in names}
    )
    unknown = 0
    for name in names if only is None else only:
        entries[name], note = _entry(name)
        unknown += entries[name].get("refused") == _UNKNOWN
        print(f"{name:28} {note}", flush=True)
    TABLE.write_text(as_stored(entries), encoding="utf-8")
    PAGE.write_text(page(entries), encoding="utf-8")
    accepted = sum("architecture" in entry for entry in entries.values())
    print(f"{accepted} of {len(entries)} accepted, {unknown} for an unknown reason not")
    return int(unknown > 0)


def _entry(name: str) -> tuple[dict[str, Any], str]:
    """The entry of a model type, and a line about it."""
    from tests.coverage.detect import NotPrunable
    from tests.coverage.examine import NotBuilt, examine
    from tests.coverage.patterns import as_entry
    from tests.coverage.reasons import REASONS

    start = time.process_time()
    try:
        found = examine(name)
    except NotPrunable as reason:
        return {"refused": REASONS.get(name, str(reason))}, f"refused: {reason}"
    except NotBuilt as error:
        return {"refused": REASONS.get(name, _NOT_BUILT)}, f"not built: {error}"
    except Exception as error:  # Whatever the class of an architecture raises.
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"refused": REASONS.get(name, _UNKNOWN)}, f"failed: {problem}"
    seconds = time.process_time() - start
    dense, pruned = found.dense_difference, found.reload_difference
    note = f"{seconds:5.1f} s, {dense:.0e} dense, {pruned:.0e} pruned"
    return {"architecture": as_entry(found.architecture)}, note


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
