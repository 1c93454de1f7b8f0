"""Sends a solve's log lines to the job's owner: short, and without secrets.

Only lines of this project's code are sent, without tracebacks: other libraries and their exceptions
may quote data, paths or credentials. Known secrets are cut out all the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from worker.protocol import LogMessage

OURS = ("strucprune_core", "worker")
MESSAGE_CHARACTERS = 1000
_SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|PEPPER|KEY|CREDENTIAL", re.IGNORECASE)
# Shorter values also occur within ordinary words.
_SECRET_CHARACTERS = 6
_HIDDEN = "***"


class LogLines(logging.Handler):
    """Sends log records of this project as messages.

    Args:
        send: Gets each message.
        environment: The process's variables, some of which are secret.
    """

    def __init__(self, send: Callable[[LogMessage], None], environment: Mapping[str, str]) -> None:
        super().__init__(logging.INFO)
        self._send = send
        self._secrets = secrets_of(environment)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record if it comes from this project."""
        if record.name.partition(".")[0] not in OURS:
            return
        try:
            message = self._redacted(record.getMessage())[:MESSAGE_CHARACTERS]
            self._send(LogMessage(at=record.created, level=record.levelname, message=message))
        except Exception:
            self.handleError(record)

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Secret values, the longest first: those of variables with such names, and URL passwords."""
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    for value in environment.values():
        try:
            password = urlsplit(value).password if "://" in value else None
        except ValueError:
            continue
        if password:
            found.add(password)
    return sorted((each for each in found if len(each) >= _SECRET_CHARACTERS), key=len)[::-1]
