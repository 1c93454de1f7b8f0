"""An estimate as a table for people. No torch."""

from __future__ import annotations

from typing import Any

from strucprune_core.commands.console import show, show_warnings


def show_estimate(result: dict[str, Any], as_json: bool) -> None:
    """Print an estimate, and its warnings."""
    if as_json:
        show(result, as_json)
        return
    show({name: value for name, value in result.items() if name != "warnings"}, as_json)
    show_warnings(result.get("warnings", []))
