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
from rich.console import Console
from rich.table import Table
from rich.text import Text

from strucprune_core.access.key_store import KeyStore
from strucprune_core.access.keys import (
    MIN_PEPPER_LENGTH,
    USUAL_SCOPES,
    KeyRecord,
    Scope,
    hash_key,
    key_id,
    new_key,
)
from strucprune_core.commands.console import JsonOption, failures, stderr
from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.open import open_store

app = typer.Typer(
    help="API keys of the service: make, list, revoke.", no_args_is_help=True, rich_markup_mode=None
)

StateOption = Annotated[
    str | None,
    typer.Option(
        envvar="STRUCPRUNE_STATE_URI",
        help="The service's state: s3://bucket/prefix, or a path.",
    ),
]


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose jobs the key sees and makes.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(get_args(Scope))}; repeat for several. "
            f"Default: {' and '.join(sorted(USUAL_SCOPES))}."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="A note: who has the key, and what for.")] = "",
    expires_days: Annotated[
        float | None, typer.Option(min=0.0, help="Days until it expires. Default: never.")
    ] = None,
    print_only: Annotated[
        bool,
        typer.Option(help="Store nothing: print the entry for STRUCPRUNE_API_KEYS instead."),
    ] = False,
    state_uri: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once and can never be shown again: only a hash of it is kept."""
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


@app.command(name="list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.")] = None,
    state_uri: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the records of all keys, expired and revoked ones too. Keys themselves are not kept."""
    with failures(as_json):
        records = [
            record
            for record in _store(state_uri).list()
            if tenant is None or record.tenant == tenant
        ]
        records.sort(key=lambda record: record.created_at)
        if as_json:
            sys.stdout.write(json.dumps([_shown(record) for record in records], indent=2) + "\n")
            return
        table = Table("id", "tenant", "scopes", "name", "created", "state", box=None)
        for record in records:
            created = f"{record.created_at:%Y-%m-%d}"
            scopes = " ".join(sorted(record.scopes))
            table.add_row(
                record.id, record.tenant, scopes, Text(record.name), created, _state_of(record)
            )
        Console().print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    state_uri: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a key from now on (within STRUCPRUNE_KEY_CACHE_SECONDS, 5 s if not set)."""
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
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidSpec(first["msg"], field=str(first["loc"][0])) from None


def _shown(record: KeyRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"format_version", "key_hmac"})


def _state_of(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return f"revoked {record.revoked_at:%Y-%m-%d %H:%M} UTC"
    if not record.is_valid(datetime.now(UTC)):
        return "expired"
    return "valid" if record.expires_at is None else f"valid until {record.expires_at:%Y-%m-%d}"
