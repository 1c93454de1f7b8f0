"""`strucprune keys create | list | revoke`: API keys, for operators of the service. No torch.

Reads STRUCPRUNE_STATE_URI, STRUCPRUNE_KEY_PEPPER and the S3 settings, as the service does. It uses
the object storage only, so it works while the service is down.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError

from strucprune_core.access.key_store import KeyStore
from strucprune_core.access.keys import (
    MIN_PEPPER_LENGTH,
    TENANT_PATTERN,
    USUAL_SCOPES,
    KeyRecord,
    Scope,
    hash_key,
    key_id,
    new_key,
)
from strucprune_core.commands.arguments import positive_number
from strucprune_core.commands.console import JsonOption, print_json, stderr
from strucprune_core.commands.failures import failures
from strucprune_core.commands.help import add_command
from strucprune_core.commands.tables import print_table
from strucprune_core.errors import InvalidSpec
from strucprune_core.plain_errors import wrong_and_cure
from strucprune_core.storage.open import open_store

app = typer.Typer(
    help="API keys of the service: make, list, revoke.", no_args_is_help=True, rich_markup_mode=None
)

StateOption = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        envvar="STRUCPRUNE_STATE_URI",
        help="The service's state: s3://bucket/prefix, or a path.",
    ),
]


# Fields of a record that the command sets, as help calls them.
_OPTIONS = {"tenant": "TENANT", "scopes": "--scope", "name": "--name"}
_PATTERNS = {TENANT_PATTERN: "It must be 1 to 63 characters of a-z, A-Z, 0-9, _ and -."}


def create(
    tenant: Annotated[
        str, typer.Argument(metavar="TENANT", help="Whose jobs the key sees and makes.")
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"[{'|'.join(get_args(Scope))}]",
            help="What the key may do; give it several times for more. `admin` shows the workers, "
            "with jobs of all tenants. "
            f"Default: {' and '.join(sorted(USUAL_SCOPES))}.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="TEXT", help="A note: who has the key, and what for.")
    ] = "",
    expires_days: Annotated[
        float | None,
        positive_number("DAYS", "Days until it expires. Default: never."),
    ] = None,
    print_only: Annotated[
        bool,
        typer.Option(
            "--print-only", help="Store nothing: print the entry for STRUCPRUNE_API_KEYS instead."
        ),
    ] = False,
    state_uri: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key.

    It is shown once and can never be shown again: only a hash of it is kept.
    """
    with failures(as_json):
        pepper = _pepper()
        key = new_key(pepper)
        now = datetime.now(UTC)
        record = _record(
            {
                "id": key_id(key, pepper),
                "tenant": tenant,
                "scopes": scope or sorted(USUAL_SCOPES),
                "key_hmac": hash_key(key, pepper),
                "name": name,
                "created_at": now,
                "expires_at": None if expires_days is None else now + timedelta(days=expires_days),
            }
        )
        if print_only:
            kept = record.model_dump(
                mode="json",
                include={"tenant", "scopes", "key_hmac", "expires_at"},
                exclude_none=True,
            )
        else:
            _store(state_uri).add(record)
            kept = _shown(record)
        if as_json:
            sys.stdout.write(json.dumps({"key": key, **kept}) + "\n")
            return
        sys.stdout.write(f"{key}\n")
        if print_only:
            sys.stdout.write(f"{json.dumps(kept)}\n")
        stderr.print(f"id {record.id}; keep the key safe, it cannot be shown again", markup=False)


def list_keys(
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Of this tenant only.")
    ] = None,
    state_uri: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the records of all keys.

    Expired and revoked ones too. Keys themselves are not kept.
    """
    with failures(as_json):
        records = [
            record
            for record in _store(state_uri).list()
            if tenant is None or record.tenant == tenant
        ]
        records.sort(key=lambda record: record.created_at)
        if as_json:
            print_json([_shown(record) for record in records])
            return
        rows = [
            [
                record.id,
                record.tenant,
                " ".join(sorted(record.scopes)),
                record.name,
                f"{record.created_at:%Y-%m-%d}",
                _state_of(record),
            ]
            for record in records
        ]
        print_table(["id", "tenant", "scopes", "name", "created", "state"], rows)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    state_uri: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a key from now on.

    It takes at most STRUCPRUNE_KEY_CACHE_SECONDS (5 s if not set).
    """
    with failures(as_json):
        record = _store(state_uri).revoke(key_id, datetime.now(UTC))
        if as_json:
            sys.stdout.write(json.dumps(_shown(record)) + "\n")
        else:
            stderr.print(f"{record.id} of {record.tenant}: {_state_of(record)}", markup=False)


def _store(state_uri: str | None) -> KeyStore:
    if not state_uri:
        raise InvalidSpec(
            "STRUCPRUNE_STATE_URI is not set, so the service's state cannot be read",
            remedy="Set it as for the service, or give --state-uri.",
        )
    return KeyStore(open_store(state_uri))


def _pepper() -> str:
    pepper = os.environ.get("STRUCPRUNE_KEY_PEPPER", "")
    if len(pepper) < MIN_PEPPER_LENGTH:
        raise InvalidSpec(
            f"STRUCPRUNE_KEY_PEPPER is not set to at least {MIN_PEPPER_LENGTH} characters",
            remedy="Set it to the pepper that the service uses.",
        )
    return pepper


def _record(fields: dict[str, Any]) -> KeyRecord:
    try:
        return KeyRecord.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        wrong, cure = wrong_and_cure(first, _PATTERNS)
        raise InvalidSpec(wrong, field=_OPTIONS.get(field, field), remedy=cure) from None


def _shown(record: KeyRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"format_version", "key_hmac"})


def _state_of(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return f"revoked {record.revoked_at:%Y-%m-%d %H:%M} UTC"
    if not record.is_valid(datetime.now(UTC)):
        return "expired"
    return "valid" if record.expires_at is None else f"valid until {record.expires_at:%Y-%m-%d}"


add_command(
    app,
    create,
    "strucprune keys create search-team --name 'nightly jobs' --expires-days 90",
    "strucprune keys create dashboards --scope jobs:read",
    "strucprune keys create operations --scope admin --name workers",
)
add_command(app, list_keys, "strucprune keys list --tenant search-team", name="list")
add_command(app, revoke, "strucprune keys revoke 5d1c09a2f7b3e846")
