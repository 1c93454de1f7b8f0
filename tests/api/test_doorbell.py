from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from api.jobs.doorbell import HELP_TASK, QUEUE, TASK, Doorbell, celery_settings, ring_if_missing
from api.jobs.ledger import Ledger
from embedded.processes import ManagedProcess, wait_until
from embedded.valkey import ValkeyServer
from tests.support.records import new_job

ROOT = Path(__file__).parents[2]


def test_a_ring_is_a_json_message(redis_url: str, flush: redis.Redis) -> None:
    doorbell = Doorbell(redis_url)
    assert doorbell.waiting() == 0
    assert doorbell.ring()
    assert doorbell.waiting() == 1
    message = json.loads(flush.lrange(QUEUE, 0, -1)[0])
    assert message["headers"]["task"] == TASK
    assert message["content-type"] == "application/json"
    doorbell.close()


def test_calls_for_help_have_a_queue_of_their_own_which_is_bounded(
    redis_url: str, flush: redis.Redis
) -> None:
    doorbell = Doorbell(redis_url)
    doorbell.ring_for_help("job_a", 2)
    assert (doorbell.waiting_for_help(), doorbell.waiting()) == (2, 0)
    message = json.loads(flush.lrange("strucprune.help", 0, -1)[0])
    assert message["headers"]["task"] == HELP_TASK
    for _ in range(10):
        assert doorbell.ring_for_help("job_a", 20)
    assert doorbell.waiting_for_help() == 64
    doorbell.close()


def test_no_more_doorbells_wait_than_jobs(
    redis_url: str, flush: redis.Redis, ledger: Ledger
) -> None:
    """Else a client that asks for the same again and again would fill Redis."""
    doorbell = Doorbell(redis_url)
    for number in range(2):
        ledger.create(new_job(f"job_{number}"))
        for _ in range(3):
            assert ring_if_missing(ledger, doorbell)
        assert doorbell.waiting() == number + 1
    doorbell.close()


def test_no_broker_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    doorbell = Doorbell("redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        assert not doorbell.ring()
    assert "strucprune.jobs" in caplog.text
    assert doorbell.waiting() is None
    assert not doorbell.ring_for_help("job_b", 3)
    assert doorbell.waiting_for_help() is None
    doorbell.close()


def test_a_broker_that_falls_silent_is_not_waited_for_long(tmp_path: Path) -> None:
    """It took 20 s: a submission waits for this."""
    with ValkeyServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        doorbell = Doorbell(server.url)
        assert doorbell.ring()
        process: Any = client.info("server")
        os.kill(process["process_id"], signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert not doorbell.ring()
            waited_seconds = time.monotonic() - began
        finally:
            os.kill(process["process_id"], signal.SIGCONT)
        assert doorbell.ring()
        doorbell.close()
    assert waited_seconds < 10  # some three when the machine is idle


def test_settings_leave_recovery_to_the_ledger() -> None:
    settings = celery_settings("redis://127.0.0.1:1/0")
    assert settings["task_acks_late"] is False
    assert settings["worker_prefetch_multiplier"] == 1
    assert settings["worker_disable_prefetch"] is True
    assert settings["result_backend"] is None
    assert settings["accept_content"] == ["json"]
    assert list(settings["task_queues"]) == [
        "strucprune.jobs",
        "strucprune.help",
    ]


WORKER = """
import sys, time
import redis
from celery import Celery
from api.jobs.doorbell import ALL_QUEUES, HELP_TASK, TASK, celery_settings

client = redis.Redis.from_url(sys.argv[1])
app = Celery("test")
app.conf.update(celery_settings(sys.argv[1]))

def answer(job_id="a job"):
    client.rpush("answered", job_id)
    time.sleep(0.05)

app.task(answer, name=TASK)
app.task(answer, name=HELP_TASK)
app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--loglevel=ERROR",
    "--queues=" + ",".join(ALL_QUEUES), "--without-gossip", "--without-mingle"])
"""


def answered(client: redis.Redis, at_least: int) -> list[str]:
    deadline = time.monotonic() + 60
    while True:
        found: Any = client.lrange("answered", 0, -1)
        if len(found) >= at_least or time.monotonic() > deadline:
            return [name.decode() for name in found]
        time.sleep(0.02)


def test_a_worker_hears_calls_for_help_last(redis_url: str, flush: redis.Redis) -> None:
    """Also after what is rung for while it works through a backlog."""
    doorbell = Doorbell(redis_url)
    doorbell.ring_for_help("help", 12)
    for _ in range(12):
        doorbell.ring()
    with subprocess.Popen([sys.executable, "-c", WORKER, redis_url], cwd=ROOT) as worker:
        try:
            before = len(answered(flush, 16))
            doorbell.ring()
            order = answered(flush, 25)
        finally:
            worker.terminate()
    doorbell.close()
    assert len(order) == 25
    assert order[:12] == 12 * ["a job"]
    # One message may have been taken before, and one more be answered meanwhile.
    assert "a job" in order[before : before + 4]


BUSY_WORKER = """
import sys, time
from pathlib import Path
from celery import Celery
from api.jobs.doorbell import QUEUE, TASK, celery_settings

folder = Path(sys.argv[2])
app = Celery("test")
app.conf.update(celery_settings(sys.argv[1]))

def answer():
    number = len([*folder.glob("*.taken")])
    (folder / f"{number}.taken").touch()
    while not (folder / f"{number}.over").exists():
        time.sleep(0.02)

app.task(answer, name=TASK)
app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--loglevel=INFO",
    "--queues=" + QUEUE, "--without-gossip", "--without-mingle"])
"""


def test_a_busy_worker_takes_no_second_message_also_after_the_broker_restarts(
    tmp_path: Path,
) -> None:
    """A bell that a busy worker holds is one that no idle worker hears."""

    def connections() -> int:
        return worker.log_path.read_text().count("Connected to redis://")

    def taken() -> list[str]:
        return sorted(path.stem for path in tmp_path.glob("*.taken"))

    with ValkeyServer(tmp_path / "valkey") as server:
        doorbell = Doorbell(server.url)
        argv = [sys.executable, "-c", BUSY_WORKER, server.url, str(tmp_path)]
        worker = ManagedProcess("worker", argv, log_directory=tmp_path, cwd=ROOT)
        try:
            for _ in range(3):
                assert doorbell.ring()
            wait_until(lambda: taken() == ["0"], "the worker is busy")
            server.stop()
            server.start()
            wait_until(lambda: connections() == 2, "the worker is connected again")
            assert doorbell.ring()
            # Long enough for it to ask all its queues.
            time.sleep(3)
            assert doorbell.waiting() == 3
            (tmp_path / "0.over").touch()
            wait_until(lambda: taken() == ["0", "1"], "the worker takes the next message")
            time.sleep(2)
            assert doorbell.waiting() == 2
            for number in (1, 2, 3):
                (tmp_path / f"{number}.over").touch()
            wait_until(lambda: len(taken()) == 4, "all are answered")
        finally:
            worker.kill()
        doorbell.close()
