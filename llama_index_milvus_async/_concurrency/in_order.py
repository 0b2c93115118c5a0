"""Work on several items at once, whose results keep the order of the items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from .drivers import cancel_all

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_in_order(
    source: AsyncGenerator[Item, None], work: Callable[[Item], Awaitable[Result]], at_once: int
) -> AsyncGenerator[Result, None]:
    """Work on items ahead of whoever takes the results.

    One more item is read than is worked on. When this generator ends or is closed, for whichever
    reason, nothing of it runs any more, and the source is closed.

    Args:
        source: The items.
        work: Makes a result of an item.
        at_once: Most items that are worked on, or done and not taken yet.

    Yields:
        The results, in the order of the items.

    Raises:
        Exception: What `work` or the source raised, after the results of the items before it.
    """
    slots = asyncio.Semaphore(at_once)
    started: asyncio.Queue[asyncio.Future[Result] | None] = asyncio.Queue()

    async def feed() -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await slots.acquire()
                    started.put_nowait(asyncio.ensure_future(work(item)))
        finally:
            started.put_nowait(None)

    feeder = asyncio.create_task(feed())
    task: asyncio.Future[Result] | None = None
    try:
        while (task := await started.get()) is not None:
            result = await task
            slots.release()
            yield result
        await feeder
    finally:
        await cancel_all([feeder])  # first of all, so that it starts nothing more
        left = [] if task is None else [task]
        while not started.empty():
            if (each := started.get_nowait()) is not None:
                left.append(each)
        await cancel_all(left)
