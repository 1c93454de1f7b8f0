"""Every failure a user can meet, as one tree.

    StrucPruneError
    ├── InvalidSpec               a field of the job is wrong                      (final)
    ├── InvalidCheckpoint         the model's files are missing, unsafe or wrong   (final)
    │   └── UnsupportedArchitecture
    ├── InvalidText               calibration or evaluation text cannot be used    (final)
    ├── OutputNotEmpty            the output prefix already holds something        (final)
    ├── WorkspaceMismatch         the workspace belongs to another job             (final)
    ├── NumericalFailure          a solve produced no usable weights               (final)
    ├── QualityCollapsed          the pruned model's perplexity is beyond the gate (final)
    ├── StorageError
    │   ├── StorageUnavailable    the store does not answer                        (retryable)
    │   ├── AccessDenied          bad or insufficient credentials                  (final)
    │   │   └── CredentialsExpired                                                 (retryable)
    │   └── ObjectNotFound        no such bucket, prefix or object                 (final)
    ├── ScratchUnavailable        temporary files cannot be written or read        (retryable)
    ├── ProcessKilled             a process of the job was killed from outside     (retryable)
    ├── OutOfMemory               device or host memory was not enough             (retryable)
    └── Stopped                   the caller asked to stop; not a failure          (resumable)

Messages name the layer or field, and `remedy` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Mend:
    """A change of one field that cures a failure: the remedy for programs, such as a form.

    Attributes:
        field: Dotted path of the job field ("pruning.layout").
        value: What to set it to, as JSON; None: leave it out.
    """

    field: str
    value: Any


class StrucPruneError(Exception):
    """A failure with a stable code, the field at fault and the cure.

    Args:
        message: What went wrong, in one sentence.
        field: Dotted path of the job field at fault ("model.uri"), if one is.
        remedy: What the user can do about it; the class's usual one if None.
        phase: The phase the job was in, if it had begun.
        layer: Index of the decoder layer at fault, if one is.
        mends: Changes of one field each, of which any cures the failure.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    usual_remedy: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        phase: str | None = None,
        layer: int | None = None,
        mends: Sequence[Mend] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy or self.usual_remedy
        self.phase = phase
        self.layer = layer
        self.mends = tuple(mends)

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        cure = f" {self.remedy}" if self.remedy else ""
        return f"{where}{self.message.removesuffix('.')}.{cure}"

    def as_dict(self) -> dict[str, Any]:
        """The wire form used in job records, `--json` output and problem details."""
        mends = [asdict(mend) for mend in self.mends]
        return {
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "remedy": self.remedy,
            "retryable": self.retryable,
            "phase": self.phase,
            "layer": self.layer,
            **({"mends": mends} if mends else {}),
        }


class InvalidSpec(StrucPruneError):
    """A field of the job specification has a value that cannot work."""

    code = "invalid_spec"


class InvalidCheckpoint(StrucPruneError):
    """The model's files are missing, unsafe, or do not hold what they claim."""

    code = "invalid_checkpoint"
    usual_remedy = (
        "Copy the model again from where it came; if that does not help, save it again with "
        "transformers' save_pretrained."
    )


class UnsupportedArchitecture(InvalidCheckpoint):
    """The model's `config.json` names an architecture this build cannot prune."""

    code = "unsupported_architecture"
    usual_remedy = (
        "This version cannot prune such a model; its README lists the models that it can prune."
    )


class InvalidText(StrucPruneError):
    """Calibration or evaluation text is unreadable or too short."""

    code = "invalid_text"
    usual_remedy = "Use another text."


class OutputNotEmpty(StrucPruneError):
    """The output prefix already holds objects; nothing is ever overwritten."""

    code = "output_not_empty"


class WorkspaceMismatch(StrucPruneError):
    """The workspace holds the units of a job with another specification or model."""

    code = "workspace_mismatch"


class NumericalFailure(StrucPruneError):
    """A factorisation failed at every damping tried, or weights were not finite."""

    code = "numerical_failure"


class QualityCollapsed(StrucPruneError):
    """The pruned model's perplexity is above the job's limit; nothing is published."""

    code = "quality_collapsed"


class StorageError(StrucPruneError):
    """Object storage or the file system refused or failed."""

    code = "storage_error"


class StorageUnavailable(StorageError):
    """The store did not answer; the same request may succeed later."""

    code = "storage_unavailable"
    usual_remedy = "Check that the storage runs and can be reached, then try again."
    retryable = True


class AccessDenied(StorageError):
    """The store refused the credentials, or they do not permit the request."""

    code = "access_denied"
    usual_remedy = "Check the credentials, and what they permit."


class CredentialsExpired(AccessDenied):
    """Temporary credentials have expired, and nothing has renewed them."""

    code = "credentials_expired"
    usual_remedy = (
        "Renew them, or use a source that renews them itself (credential_process, a web identity, "
        "a role). Then run the job again: it continues from its workspace."
    )
    retryable = True


class ObjectNotFound(StorageError):
    """No such bucket, prefix or object."""

    code = "object_not_found"
    usual_remedy = "Check the URI: bucket, prefix and name."


class ScratchUnavailable(StrucPruneError):
    """Temporary files cannot be written or read: the disk is full, or its directory unusable."""

    code = "scratch_unavailable"
    usual_remedy = (
        "Free space in the directory of temporary files, or choose another one: TMPDIR for the "
        "command, STRUCPRUNE_SCRATCH_DIRECTORY for a worker."
    )
    retryable = True


class ProcessKilled(StrucPruneError):
    """A process of the job was killed from outside, or does not answer."""

    code = "process_killed"
    usual_remedy = "Try again."
    retryable = True


class OutOfMemory(StrucPruneError):
    """The device or host ran out of memory."""

    code = "out_of_memory"
    retryable = True


class Stopped(StrucPruneError):
    """The caller asked to stop. Finished units are kept, so the job can resume."""

    code = "stopped"
    retryable = True


@contextmanager
def naming_field(field: str) -> Iterator[None]:
    """Give errors raised inside the job field at fault, if they do not name one."""
    try:
        yield
    except StrucPruneError as error:
        if error.field is None:
            error.field = field
        raise
