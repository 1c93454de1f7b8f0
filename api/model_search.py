"""Finds models by the beginning of their URI, for people who type one.

A model is a folder with a config.json. Only places that the caller's jobs may name are listed, and
nothing is read. A listing costs a request for each thousand objects, so it is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from api.allow_list import refusal
from api.settings import Settings
from strucprune_core.errors import AccessDenied, ObjectNotFound
from strucprune_core.storage.store import ReadableStore
from strucprune_core.storage.uri import canonical, parse_uri

MAX_OBJECTS = 5000
MAX_SECONDS = 3.0
_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class FoundModels:
    """Models whose URI begins as asked for.

    Attributes:
        uris: Of their folders, in the order of the listing.
        complete: Whether these are all: false if there may be more than was looked at.
    """

    uris: list[str]
    complete: bool


def find_models(
    prefix: str,
    tenant: str,
    settings: Settings,
    open_store: Callable[[str], ReadableStore],
    limit: int,
    clock: Callable[[], float] = time.monotonic,
) -> FoundModels:
    """Models that the tenant's jobs may name and whose URI begins with a text.

    Args:
        prefix: The beginning; "" for all below the tenant's allowed prefixes.
        tenant: Who asks.
        settings: Say what the tenant may name.
        open_store: Opens a folder.
        limit: Most models.
        clock: Monotonic seconds.

    Raises:
        StorageUnavailable: a store does not answer.
    """
    until, left = clock() + MAX_SECONDS, MAX_OBJECTS
    found: dict[str, None] = {}
    for folder, stem in _places(prefix, tenant, settings):
        store = open_store(folder)
        try:
            for info in islice(store.list(stem), left + 1):
                left -= 1
                if left < 0 or clock() > until or len(found) > limit:
                    return FoundModels([*found][:limit], complete=False)
                uri = _model(store.uri, info.key)
                if uri is not None and refusal(uri, tenant, settings) is None:
                    found[uri] = None
        except (AccessDenied, ObjectNotFound):
            continue  # There is nothing here that a job could read.
    return FoundModels([*found][:limit], complete=len(found) <= limit)


def _model(root: str, key: str) -> str | None:
    folder, _, name = key.rpartition("/")
    if name != _CONFIG:
        return None
    return f"{root.rstrip('/')}/{folder}" if folder else root


def _places(prefix: str, tenant: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Folders to list, each with the beginning of the keys in it.

    What was typed lies in an allowed prefix, or an allowed prefix lies in what was typed, or may.
    """
    allowed = [canonical(root) for root in settings.allowed_prefixes.get(tenant, ())]
    folder, slash, stem = prefix.rpartition("/")
    typed = _folder(folder) if slash else None
    if typed is not None and refusal(typed, tenant, settings) is None:
        yield typed, stem
        return
    for root in allowed:
        if root.startswith(prefix) and refusal(root, tenant, settings) is None:
            yield root, ""


def _folder(text: str) -> str | None:
    """The folder of a text that is being typed; None while it is none yet."""
    try:
        location = parse_uri(text or "/")
        return None if location.scheme == "hf" else canonical(text or "/")
    except ValueError:
        return None
