from __future__ import annotations

import json
import logging

import pytest
import redis

from api.jobs.doorbell import QUEUES, TASK, Doorbell, celery_settings


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


def test_no_broker_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    doorbell = Doorbell("redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        assert not doorbell.ring("job_a", "normal")
    assert "job_a" in caplog.text
    assert doorbell.waiting("normal") == 0
    doorbell.close()


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
    ]
