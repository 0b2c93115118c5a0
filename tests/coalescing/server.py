"""A server that takes calls of many items, and notes them; no Milvus is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from llama_index_milvus_async._concurrency.coalescing import Coalescer, RequestKind

UNBOUNDED = 10**9


class DataError(Exception):
    """The server refuses the data and has done nothing."""


class OverloadError(Exception):
    """The server has too much to do."""


class LostError(Exception):
    """Any other failure."""


@dataclass(eq=False)
class Call:
    """A call that the fake server has received."""

    kind: str
    key: Any
    items: list[Any]
    timeout: float | None
    reply: asyncio.Future[Sequence[Any]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    ended: bool = False
    cancelled: bool = False

    def answer(self) -> None:
        self.reply.set_result([f"re {item}" for item in self.items])

    def refuse(self, error: BaseException) -> None:
        self.reply.set_exception(error)


class Server:
    """Keeps the calls that it receives, in `calls`; each waits for its test to end it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def kind(
        self,
        name: str = "insert",
        *,
        max_items: int = UNBOUNDED,
        max_weight: int = UNBOUNDED,
        max_bytes: int = UNBOUNDED,
    ) -> RequestKind[Any, Any, Any]:
        async def receive(key: Any, items: Sequence[Any], timeout: float | None) -> Sequence[Any]:
            call = Call(name, key, list(items), timeout)
            self.calls.append(call)
            try:
                return await call.reply
            except asyncio.CancelledError:
                call.cancelled = True
                raise
            finally:
                call.ended = True

        return RequestKind(
            name,
            receive,
            max_items,
            max_weight,
            max_bytes,
            is_separable=lambda error: isinstance(error, DataError),
            may_resend=lambda key, error: isinstance(error, OverloadError),
        )

    @property
    def open(self) -> list[Call]:
        return [call for call in self.calls if not call.ended and not call.reply.done()]

    @property
    def received(self) -> list[list[Any]]:
        return [call.items for call in self.calls]

    async def answer_all(self) -> None:
        while self.open:
            for call in self.open:
                call.answer()
            await turns()


async def turns(n: int = 20) -> None:
    """Iterations enough for everything that can happen by itself."""
    for _ in range(n):
        await asyncio.sleep(0)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        await turns()


@contextmanager
def frozen(loop: asyncio.AbstractEventLoop | None = None) -> Iterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop or asyncio.get_running_loop(), "time", clock)
        yield clock


def new_coalescer(max_in_flight: int = 4, **kwargs: Any) -> Coalescer:
    kwargs.setdefault("max_queued_bytes", UNBOUNDED)
    return Coalescer(max_in_flight=max_in_flight, **kwargs)


async def submitted(
    coalescer: Coalescer,
    kind: RequestKind[Any, Any, Any],
    items: Sequence[Any],
    key: Any = "k",
    **kw: Any,
) -> list[asyncio.Task[Any]]:
    """Submits items in tasks of their own, and lets the loop turn."""
    tasks = [asyncio.create_task(coalescer.submit(kind, key, item, **kw)) for item in items]
    await turns()
    return tasks


async def outcomes(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def occupied(
    coalescer: Coalescer, server: Server, kind: RequestKind[Any, Any, Any]
) -> tuple[Call, asyncio.Task[Any]]:
    """A call that is under way, for the others to wait behind."""
    (task,) = await submitted(coalescer, kind, ["first"], key="first")
    return server.calls[-1], task


def timers() -> list[Any]:
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled()]
