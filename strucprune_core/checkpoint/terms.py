"""Files that say under which terms a model may be used: its licence, its notices, its README.

Licences ask that they go along with every copy, so results ship them. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from strucprune_core.errors import InvalidCheckpoint

MODEL_CARD = "README.md"
MAX_TERMS_BYTES = 2**20

_TERMS = re.compile(
    r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY|COPYRIGHT)([-_][\w.-]{1,100})?(\.(txt|md|rst))?", re.I
)


def terms_of(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the files of terms among a model's files, sorted.

    Args:
        sizes: Bytes by name.

    Raises:
        InvalidCheckpoint: one is too large to be such a file.
    """
    found = tuple(sorted(name for name in sizes if name == MODEL_CARD or _TERMS.fullmatch(name)))
    for name in found:
        if sizes[name] > MAX_TERMS_BYTES:
            raise InvalidCheckpoint(
                f"{name} has {sizes[name]:,} bytes, over the limit of {MAX_TERMS_BYTES:,}",
                remedy="Check what it is, or leave it out of the copy that is pruned.",
            )
    return found
