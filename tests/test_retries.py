"""Attempts after failed ones: how many, how long, and what is told in the end."""

import pytest

from llama_index_milvus_async._concurrency.backoff import LONGEST_PAUSE, MAX_RESENDS
from llama_index_milvus_async._concurrency.drivers import run_sync
from llama_index_milvus_async._transport import retries
from llama_index_milvus_async.errors import (
    LiteFileError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
)


def lost(nothing_done=False):
    error = UnreachableError("insert", "connection reset")
    error.nothing_done = nothing_done
    return error


def overloaded():
    error = ServerError("insert", "request is rejected", code=8)
    error.nothing_done = True
    return error


class Attempts:
    """Attempts that end as told, on a clock that pauses move."""

    def __init__(self, monkeypatch, *outcomes, seconds=0.0):
        self.outcomes = list(outcomes)
        self.seconds = seconds  # of each
        self.now = 0.0
        self.left = []
        self.pauses = []
        monkeypatch.setattr(retries.time, "monotonic", lambda: self.now)

    async def __call__(self, left):
        self.left.append(left)
        self.now += self.seconds
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def run(self, timeout=None, **kwargs):
        return run_sync(
            retries.retry_until_deadline(self, timeout=timeout, sleep=self.sleep, **kwargs)
        )


def test_the_first_success_counts(monkeypatch):
    attempts = Attempts(monkeypatch, lost(), overloaded(), "done")
    assert attempts.run() == "done"
    assert attempts.left == [None] * 3


def test_each_attempt_has_the_seconds_that_are_left(monkeypatch):
    attempts = Attempts(monkeypatch, lost(), lost(), "done", seconds=1.0)
    assert attempts.run(timeout=10.0) == "done"
    first, second, third = attempts.left
    assert first == 10.0
    assert second == pytest.approx(9.0 - attempts.pauses[0])
    assert third == pytest.approx(8.0 - sum(attempts.pauses))


def test_no_pause_outlasts_the_timeout(monkeypatch):
    attempts = Attempts(monkeypatch, lost())
    with pytest.raises(UnreachableError):
        attempts.run(timeout=5.0)
    assert attempts.now <= 5.0
    assert len(attempts.left) > 5.0 / LONGEST_PAUSE
    assert max(attempts.pauses) <= LONGEST_PAUSE


def test_without_a_timeout_their_number_is_bounded(monkeypatch):
    attempts = Attempts(monkeypatch, lost())
    with pytest.raises(UnreachableError):
        attempts.run()
    assert len(attempts.left) == MAX_RESENDS + 1


@pytest.mark.parametrize(
    "error",
    [
        RequestTimeoutError("insert", "no answer"),
        ServerError("insert", "no such field", code=1100),
        LiteFileError("connect", "another process has it open"),
    ],
    ids=["timeout", "refusal", "file"],
)
def test_what_another_attempt_does_not_mend_is_told_at_once(monkeypatch, error):
    attempts = Attempts(monkeypatch, error)
    with pytest.raises(type(error)):
        attempts.run(timeout=10.0)
    assert attempts.pauses == []


def test_what_may_have_been_done_is_not_done_twice(monkeypatch):
    attempts = Attempts(monkeypatch, lost(nothing_done=True), overloaded(), lost(), "done")
    with pytest.raises(UnreachableError):
        attempts.run(timeout=10.0, repeatable=False)
    assert len(attempts.left) == 3


@pytest.mark.parametrize("attempted", [[True, True], [True, False], [False, True], [False, False]])
def test_nothing_was_done_if_no_attempt_has_done_anything(monkeypatch, attempted):
    refusal = ServerError("upsert", "no such field", code=1100)
    refusal.nothing_done = attempted[1]
    attempts = Attempts(monkeypatch, lost(nothing_done=attempted[0]), refusal)
    with pytest.raises(ServerError) as caught:
        attempts.run(timeout=10.0)
    assert caught.value.nothing_done == all(attempted)


def test_a_timeout_after_a_lost_connection_is_told_as_a_lost_connection(monkeypatch):
    attempts = Attempts(monkeypatch, lost(nothing_done=True), RequestTimeoutError("insert", ""))
    with pytest.raises(UnreachableError, match="connection reset") as caught:
        attempts.run(timeout=10.0)
    assert not caught.value.nothing_done
