from __future__ import annotations

import logging

import pytest

from worker.log_lines import MESSAGE_CHARACTERS, LogLines, secrets_of
from worker.protocol import LogMessage

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "hush-hush-hush",
    "STRUCPRUNE_REDIS_URL": "redis://:p4ssw0rd!@host:6379/0",
    "STRUCPRUNE_BROKER_URL": "redis://[::1",
    "SHORT_KEY": "a",
    "HOME": "/home/worker",
}


def sent(name: str, message: str, *args: object, level: int = logging.INFO) -> list[LogMessage]:
    messages: list[LogMessage] = []
    handler = LogLines(messages.append, ENVIRONMENT)
    logger = logging.Logger(name)
    logger.addHandler(handler)
    logger.log(level, message, *args)
    return messages


def test_a_line_of_ours() -> None:
    (line,) = sent("strucprune_core.pipeline", "%s finished in %.1f s", "solve.3", 1.25)
    assert (line.level, line.message) == ("INFO", "solve.3 finished in 1.2 s")
    assert line.at > 1e9


@pytest.mark.parametrize(
    ("name", "level"),
    [("botocore.auth", logging.WARNING), ("strucprune_core.x", logging.DEBUG), ("workers", 30)],
)
def test_others_stay_here(name: str, level: int) -> None:
    assert sent(name, "text", level=level) == []


def test_no_secret_leaves() -> None:
    (line,) = sent("worker.solve", "key %s at %s", "hush-hush-hush", "redis://:p4ssw0rd!@host/0")
    assert line.message == "key *** at redis://:***@host/0"
    assert secrets_of(ENVIRONMENT) == ["hush-hush-hush", "p4ssw0rd!"]


def test_no_traceback_and_no_endless_line() -> None:
    messages: list[LogMessage] = []
    logger = logging.Logger("worker.solve")
    logger.addHandler(LogLines(messages.append, {}))
    try:
        raise ValueError("a foreign word")
    except ValueError:
        logger.exception("x" * 5000)
    assert messages[0].message == "x" * MESSAGE_CHARACTERS
