"""How much memory and processor time the process that reads texts may take. No torch.

Its inputs may be hostile: a chat template is a program, a tokenizer's rules may need time that
grows exponentially with the text, and a file of some kilobytes may unpack to gigabytes. So both
limits grow with the text, and the kernel enforces them: nothing else can interrupt a library that
does not return.

Time is processor time, so that an honest text does not fail on a busy machine. Memory is what
RLIMIT_DATA counts: private memory that can be written. RLIMIT_AS would also count mapped libraries
and address space that is only reserved.
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
# The most that `text.encode_pieces` tokenises at once, at four bytes a character.
_MOST_UNCUT_BYTES = 4 * (MAX_UNCUT_BLOCKS + 1) * BLOCK_BYTES


class TextLimits(BaseModel):
    """Both limits, as linear functions of the bytes of text read so far.

    Tokenisers were seen to take 0.5 to 1.3 s for a MiB of text, and at most 230 bytes of memory for
    a byte of it (with texts that cannot be cut between words); for a byte of tokenizer.json 15.

    Attributes:
        seconds: Processor time for what does not grow: loading libraries, the tokenizer, a footer.
        seconds_per_mib: Processor time for each MiB of text.
        seconds_per_record: Processor time for each record of a file of documents.
        bytes: Memory for what does not grow with the text.
        bytes_per_byte: Memory for each byte of the longest piece of text.
        bytes_per_tokenizer_byte: Memory for each byte of tokenizer.json.
        seconds_per_converted_mib: Processor time for each MiB of files that one is made of.
        bytes_per_converted_byte: Memory for each byte of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = 20.0
    seconds_per_mib: float = 20.0
    seconds_per_record: float = 0.02
    bytes: int = 512 << 20
    bytes_per_byte: int = 320
    bytes_per_tokenizer_byte: int = 32
    seconds_per_converted_mib: float = 60.0
    bytes_per_converted_byte: int = 512


class ProcessLimits:
    """The limits of this very process, raised as it reads.

    Args:
        limits: How they grow.
    """

    def __init__(self, limits: TextLimits) -> None:
        self._limits = limits
        # What the interpreter and its libraries took before any input was read.
        self._seconds = _processor_seconds() + limits.seconds
        self._base_bytes = _data_bytes() + limits.bytes
        self._longest_bytes = 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._apply()

    def tokenizer(self, size_bytes: int) -> None:
        """A tokenizer.json of this size is about to be parsed."""
        self._base_bytes += self._limits.bytes_per_tokenizer_byte * size_bytes
        self._apply()

    def conversion(self, size_bytes: int) -> None:
        """A file of this size is about to become part of a tokenizer.json."""
        self._seconds += self._limits.seconds_per_converted_mib * size_bytes / (1 << 20)
        self._base_bytes += self._limits.bytes_per_converted_byte * size_bytes
        self._apply()

    def record(self, size_bytes: int) -> None:
        """A record of this size comes next, which a chat template may render."""
        self._seconds += self._limits.seconds_per_record
        self.text(size_bytes, 2 * size_bytes + _TEMPLATE_BYTES)

    def prompt(self, size_bytes: int) -> None:
        """A text of this size comes next, which is tokenised at once."""
        self._seconds += self._limits.seconds_per_record
        self.text(size_bytes, size_bytes)

    def text(self, size_bytes: int, uncut_bytes: int) -> None:
        """More text comes next.

        Args:
            size_bytes: Its size.
            uncut_bytes: How much is then tokenised at once.
        """
        self._seconds += self._limits.seconds_per_mib * size_bytes / (1 << 20)
        # Never lowered: the memory of a long piece is not given back to the kernel at once.
        self._longest_bytes = max(self._longest_bytes, min(uncut_bytes, _MOST_UNCUT_BYTES))
        self._apply()

    def _apply(self) -> None:
        _lower(resource.RLIMIT_CPU, math.ceil(self._seconds))
        growing = self._limits.bytes_per_byte * self._longest_bytes
        _lower(resource.RLIMIT_DATA, self._base_bytes + growing)


def _lower(which: int, value: int) -> None:
    """Set a soft limit, within the hard limit that the process started with."""
    soft, hard = resource.getrlimit(which)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    if allowed != soft:
        resource.setrlimit(which, (allowed, hard))


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _data_bytes() -> int:
    """Private writable memory of this process; 0 where the kernel does not report it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
