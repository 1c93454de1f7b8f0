"""How much memory and processor time the process that reads texts may take. No torch.

What it runs may be hostile: a chat template is a program, the rules of a tokenizer may need time
that grows exponentially with the text, and a file of some kilobytes may unpack to gigabytes. So
both limits grow with the text, and the kernel keeps them: nothing else can interrupt a library that
does not return.

Time is processor time, so that a busy machine does not make an honest text fail. Memory is what
RLIMIT_DATA counts: private memory that can be written. RLIMIT_AS would count mapped libraries and
address space that is only reserved, too.
"""

from __future__ import annotations

import math
import resource
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from strucprune_core.calibration.text import BLOCK_BYTES, MAX_UNCUT_BLOCKS

_STATUS = Path("/proc/self/status")
# What a chat template may add to a conversation: a system prompt, descriptions of tools.
_TEMPLATE_BYTES = 1 << 20
# What `text.encode_pieces` tokenises at once at most: so many characters, of four bytes.
_MOST_UNCUT_BYTES = 4 * (MAX_UNCUT_BLOCKS + 1) * BLOCK_BYTES


class TextLimits(BaseModel):
    """Both limits, as lines over the bytes of text that were read so far.

    Tokenisers take 0.5 to 1.3 s and at most 230 bytes of memory for a byte of text (both seen with
    texts that cannot be cut between words), and 15 bytes for a byte of tokenizer.json.

    Attributes:
        seconds: Processor time for what does not grow: loading libraries, the tokenizer, a footer.
        seconds_per_mib: Processor time for each MiB of text.
        seconds_per_record: Processor time for each record of a file of documents.
        bytes: Memory for what does not grow with the text.
        bytes_per_byte: Memory for each byte of the longest piece of text.
        bytes_per_tokenizer_byte: Memory for each byte of tokenizer.json.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = 20.0
    seconds_per_mib: float = 20.0
    seconds_per_record: float = 0.02
    bytes: int = 512 << 20
    bytes_per_byte: int = 320
    bytes_per_tokenizer_byte: int = 32


class ProcessLimits:
    """The limits of this very process, raised as it reads.

    Args:
        limits: How they grow.
    """

    def __init__(self, limits: TextLimits) -> None:
        self._limits = limits
        # What the interpreter and its libraries took before any foreign data came in.
        self._seconds = _processor_seconds() + limits.seconds
        self._base_bytes = _data_bytes() + limits.bytes
        self._longest_bytes = 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._apply()

    def tokenizer(self, size_bytes: int) -> None:
        """A tokenizer.json of this size is about to be parsed."""
        self._base_bytes += self._limits.bytes_per_tokenizer_byte * size_bytes
        self._apply()

    def record(self, size_bytes: int) -> None:
        """A record of this size comes next, perhaps to be written out by a chat template."""
        self._seconds += self._limits.seconds_per_record
        self.text(size_bytes, 2 * size_bytes + _TEMPLATE_BYTES)

    def text(self, size_bytes: int, uncut_bytes: int) -> None:
        """More text comes next.

        Args:
            size_bytes: How much.
            uncut_bytes: How much is then tokenised at once.
        """
        self._seconds += self._limits.seconds_per_mib * size_bytes / (1 << 20)
        # Never less than before: what a long piece needed is not given back to the kernel at once.
        self._longest_bytes = max(self._longest_bytes, min(uncut_bytes, _MOST_UNCUT_BYTES))
        self._apply()

    def _apply(self) -> None:
        _lower(resource.RLIMIT_CPU, math.ceil(self._seconds))
        growing = self._limits.bytes_per_byte * self._longest_bytes
        _lower(resource.RLIMIT_DATA, self._base_bytes + growing)


def _lower(which: int, value: int) -> None:
    """Set a soft limit; a harder one that the process came with stays."""
    soft, hard = resource.getrlimit(which)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    if allowed != soft:
        resource.setrlimit(which, (allowed, hard))


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _data_bytes() -> int:
    """Private writable memory of this process; 0 where the kernel does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
