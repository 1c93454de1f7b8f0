"""`strucprune keys`, as an operator types it, and the keys themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from strucprune_core.access.key_store import KeyStore
from strucprune_core.access.keys import hash_key, key_id, new_key
from strucprune_core.commands.main import app
from strucprune_core.storage.local import LocalStore

PEPPER = "pepper-of-the-tests"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRUCPRUNE_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("STRUCPRUNE_STATE_URI", str(tmp_path))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def result_of(*arguments: str) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_keys_are_random_and_hashes_peppered() -> None:
    key = new_key(PEPPER)
    assert key != new_key(PEPPER)
    assert len(key) >= 40
    assert hash_key(key, "pepper-one") != hash_key(key, "pepper-two")
    assert key_id(key, PEPPER) == key.split("_")[1]
    assert key_id(key, "another") is None
    for position in range(4, len(key)):
        changed = "0" if key[position] != "0" else "1"
        assert key_id(key[:position] + changed + key[position + 1 :], PEPPER) is None


def test_create_list_revoke(tmp_path: Path) -> None:
    made = result_of("create", "acme", "--name", "ci [red]", "--scope", "jobs:read")
    other = call("create", "rival", "--expires-days", "0").stdout.strip()
    (file,) = tmp_path.glob(f"keys/{made['id']}.json")
    kept = file.read_text(encoding="utf-8")
    secret = made["key"].split("_", 2)[2]
    assert secret not in kept
    record = KeyStore(LocalStore(tmp_path)).get(made["id"])
    assert record is not None
    assert record.key_hmac == hash_key(made["key"], PEPPER)
    assert (record.tenant, record.scopes) == ("acme", frozenset({"jobs:read"}))

    found = result_of("list")
    assert [entry["tenant"] for entry in found] == ["acme", "rival"]
    assert "key_hmac" not in found[0]
    assert result_of("list", "--tenant", "acme")[0]["id"] == made["id"]
    shown = call("list").stdout
    assert "expired" in shown
    assert "ci [red]" in shown
    assert other not in shown

    revoked = result_of("revoke", made["id"])
    assert revoked["revoked_at"] is not None
    assert result_of("revoke", made["id"]) == revoked
    assert "revoked" in call("list").stdout


def test_print_only_keeps_nothing(tmp_path: Path) -> None:
    key, entry = call("create", "acme", "--print-only").stdout.splitlines()
    assert json.loads(entry)["key_hmac"] == hash_key(key, PEPPER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "a/b"], "TENANT: must be 1 to 63 characters of a-z, A-Z, 0-9, _ and -."),
        (["create", "acme", "--scope", "all"], "--scope: must be one of these: 'jobs:read', "),
        (["revoke", "0" * 16], "keys list"),
        (["revoke", "../spec"], "segment"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("variable", ["STRUCPRUNE_KEY_PEPPER", "STRUCPRUNE_STATE_URI"])
def test_a_missing_setting_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable)
    result = call("create", "acme")
    assert result.exit_code == 2
    assert variable in result.stderr
    assert "spk_" not in result.output
