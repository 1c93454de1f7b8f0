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

from api.jobs.doorbell import HELP_TASK, QUEUES, TASK, Doorbell, celery_settings
from api.jobs.record import Priority
from embedded.processes import ManagedProcess, wait_until
from embedded.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]


def test_a_ring_is_a_json_message_in_the_queue_of_its_priority(
    redis_url: str, flush: redis.Redis
) -> None:
    doorbell = Doorbell(redis_url)
    assert doorbell.waiting("high") == 0
    assert doorbell.ring("job_a", "high")
    assert doorbell.waiting("high") == 1
    assert doorbell.waiting("normal") == 0
    message = json.loads(flush.lrange(QUEUES["high"], 0, -1)[0])
    assert message["headers"]["task"] == TASK
    assert message["content-type"] == "application/json"
    doorbell.close()


def test_calls_for_help_have_a_queue_of_their_own(redis_url: str, flush: redis.Redis) -> None:
    doorbell = Doorbell(redis_url)
    doorbell.ring_for_help("job_a", 2)
    assert doorbell.waiting_for_help() == 2
    assert {doorbell.waiting(priority) for priority in QUEUES} == {0}
    message = json.loads(flush.lrange("strucprune.help", 0, -1)[0])
    assert message["headers"]["task"] == HELP_TASK
    doorbell.close()


def test_no_broker_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    doorbell = Doorbell("redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        assert not doorbell.ring("job_a", "normal")
    assert "job_a" in caplog.text
    assert doorbell.waiting("normal") is None
    assert not doorbell.ring_for_help("job_b", 3)
    assert caplog.text.count("job_b") == 1
    assert doorbell.waiting_for_help() is None
    doorbell.close()


def test_a_broker_that_falls_silent_is_not_waited_for_long(tmp_path: Path) -> None:
    """It took 20 s: a submission waits for this."""
    with ValkeyServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        doorbell = Doorbell(server.url)
        assert doorbell.ring("job_a", "normal")
        process: Any = client.info("server")
        os.kill(process["process_id"], signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert not doorbell.ring("job_a", "normal")
            waited_seconds = time.monotonic() - began
        finally:
            os.kill(process["process_id"], signal.SIGCONT)
        assert doorbell.ring("job_a", "normal")
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
        "strucprune.high",
        "strucprune.normal",
        "strucprune.low",
        "strucprune.help",
    ]


WORKER = """
import sys, time
import redis
from celery import Celery
from api.jobs.doorbell import QUEUES, TASK, celery_settings

client = redis.Redis.from_url(sys.argv[1])
app = Celery("test")
app.conf.update(celery_settings(sys.argv[1]))

def answer(job_id):
    client.rpush("answered", job_id)
    time.sleep(0.05)

app.task(answer, name=TASK)
app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--loglevel=ERROR",
    "--queues=" + ",".join(QUEUES.values()), "--without-gossip", "--without-mingle"])
"""


def answered(client: redis.Redis, at_least: int) -> list[str]:
    deadline = time.monotonic() + 60
    while True:
        found: Any = client.lrange("answered", 0, -1)
        if len(found) >= at_least or time.monotonic() > deadline:
            return [name.decode() for name in found]
        time.sleep(0.02)


def test_a_loaded_worker_answers_by_priority(redis_url: str, flush: redis.Redis) -> None:
    """Also what is rung for while it works through a backlog."""
    doorbell = Doorbell(redis_url)
    backlog: list[tuple[str, Priority]] = [
        (f"{priority}-{number}", priority)
        for number in range(12)
        for priority in ("low", "normal", "high")
    ]
    for name, priority in backlog:
        doorbell.ring(name, priority)
    with subprocess.Popen([sys.executable, "-c", WORKER, redis_url], cwd=ROOT) as worker:
        try:
            before = len(answered(flush, 16))
            doorbell.ring("urgent", "high")
            order = answered(flush, len(backlog) + 1)
        finally:
            worker.terminate()
    doorbell.close()
    assert len(order) == len(backlog) + 1
    # One message may have been taken before, and one more be rung for meanwhile.
    assert order.index("urgent") <= before + 3
    order.remove("urgent")
    wanted = [f"{priority}-{n}" for priority in ("high", "normal", "low") for n in range(12)]
    assert order == wanted


BUSY_WORKER = """
import sys, time
from pathlib import Path
from celery import Celery
from api.jobs.doorbell import QUEUES, TASK, celery_settings

folder = Path(sys.argv[2])
app = Celery("test")
app.conf.update(celery_settings(sys.argv[1]))

def answer(job_id):
    (folder / f"{job_id}.taken").touch()
    while not (folder / f"{job_id}.over").exists():
        time.sleep(0.02)

app.task(answer, name=TASK)
app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--loglevel=INFO",
    "--queues=" + ",".join(QUEUES.values()), "--without-gossip", "--without-mingle"])
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
            for job_id in ("a", "b", "c"):
                assert doorbell.ring(job_id, "normal")
            wait_until(lambda: taken() == ["a"], "the worker is busy")
            server.stop()
            server.start()
            wait_until(lambda: connections() == 2, "the worker is connected again")
            assert doorbell.ring("d", "normal")
            # Long enough for it to ask all its queues.
            time.sleep(3)
            assert doorbell.waiting("normal") == 3
            (tmp_path / "a.over").touch()
            wait_until(lambda: taken() == ["a", "b"], "the worker takes the next message")
            time.sleep(2)
            assert doorbell.waiting("normal") == 2
            for job_id in ("b", "c", "d"):
                (tmp_path / f"{job_id}.over").touch()
            wait_until(lambda: len(taken()) == 4, "all are answered")
        finally:
            worker.kill()
        doorbell.close()
