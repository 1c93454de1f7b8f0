"""Keeps the commits of a job in its workspace, so that a run that resumes it reads the same files.

`pins/<digest of the URI>.json` holds a URI as it was given, and with its commit.
"""

from __future__ import annotations

import json

from strucprune_core.errors import ObjectNotFound, naming_field
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.open import pinned
from strucprune_core.storage.store import Store
from strucprune_core.storage.uri import parse_uri


def pinned_in(workspace: Store, uri: str) -> str:
    """The URI with the commit that the workspace keeps for it, or else with that of now.

    Args:
        workspace: The job's, which keeps it from now on.
        uri: A URI that a job reads; most have no commit, and are returned as they are.

    Raises:
        StrucPruneError: as `storage.open.pinned`, or the workspace refused or failed.
    """
    if not parse_uri(uri).may_change:
        return uri
    key = f"pins/{sha256_of_bytes(uri.encode())}.json"
    with naming_field("workspace"):
        kept = _kept(workspace, key, uri)
    if kept is not None:
        return kept
    mine = pinned(uri)
    data = json.dumps({"uri": uri, "pinned": mine}).encode()
    with naming_field("workspace"):
        if workspace.put_if_absent(key, data):
            return mine
        kept = _kept(workspace, key, uri)
        if kept is not None:  # Another process was first.
            return kept
        workspace.put(key, data)  # What is there is damaged.
    return mine


def _kept(workspace: Store, key: str, uri: str) -> str | None:
    """What is kept for the URI; None if nothing is, or if it is not of this URI."""
    try:
        body = json.loads(bytes(workspace.read(key)))
        kept, given = parse_uri(body["pinned"]), parse_uri(uri)
        return str(kept) if kept == given.at_commit(kept.revision) else None
    except (ObjectNotFound, ValueError, KeyError, TypeError):
        return None
