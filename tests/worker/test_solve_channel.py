"""The solve's end of the line to its supervisor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from strucprune_core.errors import Stopped
from worker.protocol import Answer, Held
from worker.solve_channel import AskedReservations, Channel, Inbox


@dataclass
class Line:
    """Both ends; what the solve writes is read from `told`, what it hears is written to `say`."""

    channel: Channel
    inbox: Inbox
    told: int
    say: int

    def claims(self, *stops: Exception) -> AskedReservations:
        left = [*stops]

        def check() -> None:
            if left:
                raise left.pop()

        return AskedReservations(self.channel, self.inbox, check)

    def answer(self, answer: Answer | Held) -> None:
        os.write(self.say, answer.model_dump_json().encode() + b"\n")


@pytest.fixture
def line() -> Iterator[Line]:
    told, out = os.pipe()
    heard, say = os.pipe()
    ends = Line(Channel(out), Inbox(heard), told, say)
    yield ends
    for descriptor in {told, out, heard, say}:
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor == say  # hung up by the test


def test_a_claim_is_a_question_and_an_answer(line: Line) -> None:
    claims = line.claims()
    line.answer(Answer(go=True, unit="curve.1"))
    line.answer(Answer(go=True))
    assert claims.reserve(["curve.0", "curve.1"]) == "curve.1"
    assert claims.reserve([], keeping="curve.1") is None
    questions = [json.loads(text) for text in os.read(line.told, 4096).splitlines()]
    assert questions == [
        {"type": "reserve", "ready": ["curve.0", "curve.1"], "keeping": None},
        {"type": "reserve", "ready": [], "keeping": "curve.1"},
    ]


def test_who_has_what_is_a_question_and_an_answer(line: Line) -> None:
    claims = line.claims()
    line.answer(Held(go=True, units=["curve.1", "solve.2"]))
    line.answer(Held(go=True))
    assert claims.held() == frozenset(["curve.1", "solve.2"])
    assert claims.held() is None
    assert os.read(line.told, 4096) == b'{"type":"held"}\n' * 2


def test_no_more_work_is_a_stop(line: Line) -> None:
    line.answer(Answer(go=False))
    line.answer(Held(go=False))
    with pytest.raises(Stopped, match="no more work"):
        line.claims().reserve(["curve.0"])
    with pytest.raises(Stopped, match="no more work"):
        line.claims().held()


def test_a_supervisor_that_hangs_up_is_a_stop(line: Line) -> None:
    os.close(line.say)
    with pytest.raises(Stopped, match="no more work"):
        line.claims().reserve(["curve.0"])


def test_a_stop_is_heard_while_the_answer_is_waited_for(line: Line) -> None:
    with pytest.raises(Stopped, match="asked to"):
        line.claims(Stopped("asked to")).reserve(["curve.0"])


def test_lines_come_in_pieces(line: Line) -> None:
    os.write(line.say, b"one\ntw")
    assert line.inbox.line() == b"one"
    os.write(line.say, b"o\nthree")
    assert line.inbox.line() == b"two"
    os.close(line.say)
    assert line.inbox.line() == b"three"
    assert line.inbox.line() is None
