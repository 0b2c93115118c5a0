"""The promises of the coalescer in any order of what happens."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_index_milvus_async._concurrency import coalescing as _coalescing
from tests.coalescing.server import (
    Call,
    DataError,
    LostError,
    OverloadError,
    Server,
    frozen,
    new_coalescer,
)


@dataclass(eq=False)
class Caller:
    """What the model knows of one submitted item."""

    number: int
    kind: int
    key: str
    weight: int
    size: int
    deadline: float
    task: asyncio.Task[Any]
    sent: list[Call] = field(default_factory=list)
    cancelled: bool = False


ERRORS = {"data": DataError, "overload": OverloadError, "lost": LostError}


class Promises(RuleBasedStateMachine):
    """Callers and a server that do anything at any time, one iteration of the loop at a time."""

    MAX_IN_FLIGHT = 3
    MAX_ITEMS, MAX_WEIGHT, MAX_BYTES, MAX_QUEUED = 4, 10, 40, 60

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.reports: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.reports.append(context))
        self.freezing = frozen(self.loop)
        self.clock = self.freezing.__enter__()
        self.server = Server()
        bounds = {"max_items": 4, "max_weight": 10, "max_bytes": 40}
        self.kinds = [self.server.kind(name, **bounds) for name in ("insert", "search")]
        self.coalescer = new_coalescer(3, max_queued_bytes=60, clock=self.clock)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(_coalescing, "MAX_RESENDS", 2)
        self.callers: list[Caller] = []
        self.seen = 0
        self.failures: dict[Call, str] = {}

    def iterate(self, n: int = 1) -> None:
        for _ in range(n):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            self.look_at_new_calls()

    def look_at_new_calls(self) -> None:
        calls, self.seen = self.server.calls[self.seen :], len(self.server.calls)
        for call in calls:
            members = [self.callers[number] for number in call.items]
            assert members, "an empty call"
            assert {(self.kinds[m.kind].name, m.key) for m in members} == {(call.kind, call.key)}
            if len(members) > 1:
                assert len(members) <= self.MAX_ITEMS
                assert sum(m.weight for m in members) <= self.MAX_WEIGHT
                assert sum(m.size for m in members) <= self.MAX_BYTES
            assert call.items == sorted(call.items), "order within a call"
            for member in members:
                assert not member.task.done(), "sent for nobody"
                if member.sent:
                    assert self.failures.get(member.sent[-1]) in ("data", "overload"), "sent twice"
                else:
                    later = [c for c in self.callers[member.number + 1 :] if c.sent]
                    rivals = [c for c in later if (c.kind, c.key) == (member.kind, member.key)]
                    assert all(c.sent[0] is call for c in rivals), "order within a key"
                member.sent.append(call)
            patience = max(m.deadline for m in members)
            assert call.timeout == (None if patience == math.inf else patience - self.clock.now)

    @property
    def waiting(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.task.done()]

    @rule(
        kind=st.integers(0, 1),
        key=st.sampled_from("ab"),
        weight=st.sampled_from([1, 1, 1, 1, 5, 11]),
        size=st.sampled_from([1, 1, 0, 10, 10, 30, 41, 70]),
        timeout=st.sampled_from([None, None, None, 1000, 10, 0]),
        count=st.integers(1, 8),
        iterations=st.integers(1, 4),
    )
    def submit(
        self,
        kind: int,
        key: str,
        weight: int,
        size: int,
        timeout: float | None,
        count: int,
        iterations: int,
    ) -> None:
        for _ in range(count):
            number = len(self.callers)
            deadline = math.inf if timeout is None else self.clock.now + timeout
            coroutine = self.coalescer.submit(
                self.kinds[kind], key, number, weight=weight, size=size, timeout=timeout
            )
            task = self.loop.create_task(coroutine)
            self.callers.append(Caller(number, kind, key, weight, size, deadline, task))
        # Deadlines begin with the first step, hence before the clock moves.
        self.iterate(iterations)

    @rule(n=st.integers(1, 6))
    def turn(self, n: int) -> None:
        self.iterate(n)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), count=st.integers(1, 4))
    def cancel(self, data: Any, count: int) -> None:
        for _ in range(count):
            caller = data.draw(st.sampled_from(self.waiting))
            caller.cancelled = True
            caller.task.cancel()

    @precondition(lambda self: self.server.open)
    @rule(data=st.data())
    def cancel_a_whole_call(self, data: Any) -> None:
        call = data.draw(st.sampled_from(self.server.open))
        for number in call.items:
            caller = self.callers[number]
            if not caller.task.done():
                caller.cancelled = True
                caller.task.cancel()

    @precondition(lambda self: self.server.open)
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        data.draw(st.sampled_from(self.server.open)).answer()

    @precondition(lambda self: self.server.open)
    @rule(data=st.data(), error=st.sampled_from(sorted(ERRORS)))
    def refuse(self, data: Any, error: str) -> None:
        call = data.draw(st.sampled_from(self.server.open))
        self.failures[call] = error
        call.refuse(ERRORS[error](call))

    @precondition(lambda self: self.server.open)
    @rule(error=st.sampled_from([None, *sorted(ERRORS)]), iterations=st.integers(0, 4))
    def treat_all_alike(self, error: str | None, iterations: int) -> None:
        for call in self.server.open:
            if error is None:
                call.answer()
            else:
                self.failures[call] = error
                call.refuse(ERRORS[error](call))
        self.iterate(iterations)

    @rule(seconds=st.sampled_from([0.05, 1, 10]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.iterate()

    @rule()
    def rest(self) -> None:
        """When nothing more happens by itself, no slot is free that somebody could use."""
        self.iterate(20)
        open_calls = self.server.open
        free = self.MAX_IN_FLIGHT - len(open_calls)
        under_way = {number for call in open_calls for number in call.items}
        for index, kind in enumerate(self.kinds):
            lane = self.coalescer._lanes.get(kind)
            waiting = [c for c in self.waiting if c.kind == index and c.number not in under_way]
            if lane is None or lane.pause is not None or not waiting:
                continue
            mine = [call for call in open_calls if call.kind == kind.name]
            assert mine or not free, "a kind starves"
            # Where none is in its queue, all stand in the line for want of bytes.
            assert free <= 1 or len(mine) >= lane.limit or not lane.queues, "a slot is wasted"

    @invariant()
    def calls_are_within_their_limit(self) -> None:
        open_calls = self.server.open
        assert len(open_calls) <= self.MAX_IN_FLIGHT
        for index, kind in enumerate(self.kinds):
            mine = [call for call in open_calls if call.kind == kind.name]
            assert len(mine) < self.MAX_IN_FLIGHT
            admitted = [self.callers[n] for call in mine for n in call.items]
            assert all(caller.kind == index for caller in admitted)
            sizes = [caller.size for caller in admitted if caller.size]
            assert sum(sizes) <= self.MAX_QUEUED or len(sizes) == 1

    @invariant()
    def the_loop_has_nothing_to_report(self) -> None:
        assert self.reports == []

    @invariant()
    def everyone_gets_what_is_due(self) -> None:
        for caller in self.callers:
            task = caller.task
            if not task.done():
                continue
            if task.cancelled():
                assert caller.cancelled
                continue
            error, call = task.exception(), caller.sent[-1] if caller.sent else None
            failure = self.failures.get(call) if call else None
            if error is None:
                assert task.result() == f"re {caller.number}"
                assert call is not None
                assert failure is None
            elif isinstance(error, asyncio.TimeoutError):
                assert caller.deadline <= self.clock.now
            else:
                assert type(error) is ERRORS[failure or ""]
                assert error.args == (call,)
                if failure == "data":
                    assert call is not None
                    assert call.items == [caller.number], "failed for another's data"
                if failure == "overload":
                    assert caller.deadline == math.inf
                    refusals = [self.failures.get(c) for c in caller.sent]
                    assert refusals.count("overload") == _coalescing.MAX_RESENDS + 1

    def teardown(self) -> None:
        try:
            for _ in range(1000):
                if not self.waiting and self.coalescer.is_idle:
                    break
                for call in self.server.open:
                    call.answer()
                self.clock.now += 0.5
                self.iterate(5)
            assert not self.waiting
            assert self.coalescer.is_idle
            self.everyone_gets_what_is_due()
            for lane in self.coalescer._lanes.values():
                assert (lane.bytes, lane.in_flight, lane.pause) == (0, 0, None)
            stats = list(self.coalescer.stats().values())
            assert sum(s.calls for s in stats) == len(self.callers)
            assert sum(s.rpcs for s in stats) == len(self.server.calls)
            assert sum(s.items for s in stats) == sum(map(len, self.server.received))
            ends = [c.task for c in self.callers]
            assert sum(s.cancelled for s in stats) == sum(task.cancelled() for task in ends)
            late = [t for t in ends if not t.cancelled() and t.exception()]
            late = [t for t in late if isinstance(t.exception(), asyncio.TimeoutError)]
            # A caller may be cancelled just when it is told that its deadline has passed.
            assert sum(s.timed_out for s in stats) >= len(late)
            assert asyncio.all_tasks(self.loop) == set()
            scheduled: list[Any] = getattr(self.loop, "_scheduled")  # noqa: B009
            assert [handle for handle in scheduled if not handle.cancelled()] == []
            self.callers.clear()
            self.server.calls.clear()
            self.failures.clear()
            self.the_loop_has_nothing_to_report()
        finally:
            self.freezing.__exit__(None, None, None)
            self.patch.undo()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=100,
    stateful_step_count=60,
)
