"""The model card of a job's result."""

from __future__ import annotations

from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.export.runtimes import loading_example, runtime_support
from strucprune_core.report.card import CardFacts, model_card
from strucprune_core.report.document import Loading, Report
from strucprune_core.report.front_matter import carried_keys
from strucprune_core.run.context import Job
from strucprune_core.storage.uri import parse_uri


def card_of(job: Job, report: Report) -> bytes:
    """README.md of the result.

    Args:
        job: A job whose units are finished.
        report: Its report; the list of files may be missing.
    """
    terms = job.index.terms
    readme = bytes(job.index.store.read(MODEL_CARD)) if MODEL_CARD in terms else b""
    facts = CardFacts(
        base_model=_base_model(job.spec.model.uri),
        carried=carried_keys(readme),
        terms=tuple(name for name in terms if name != MODEL_CARD),
    )
    return model_card(report, facts).encode()


def _base_model(uri: str) -> str | None:
    """`org/name` of a whole repository of a hub."""
    location = parse_uri(uri)
    whole = location.scheme == "hf" and not location.key and "datasets/" not in location.bucket
    return location.bucket if whole else None


def loading_of(job: Job) -> list[Loading]:
    """How runtimes load the result."""
    found = []
    for support in runtime_support(job.config, job.spec.pruning):
        if support.loads:
            language, example = loading_example(support, job.spec.pruning, job.config)
            note = support.note or ""
            if not support.tried:
                note += "; not tried"
            found.append(
                Loading(runtime=support.runtime, note=note, language=language, example=example)
            )
    return found
