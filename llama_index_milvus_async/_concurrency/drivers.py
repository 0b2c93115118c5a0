"""Running coroutines without an event loop, and functions that users pass, plain or `async`."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def run_sync(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that never suspends, without an event loop.

    Raises:
        RuntimeError: The coroutine suspended; it awaited something else than blocking requests.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended, and there is no event loop to wait on")


async def block(seconds: float) -> None:
    """Wait without an event loop."""
    time.sleep(seconds)  # noqa: ASYNC251


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether a function, or an object that is called as one, has to be awaited."""
    # Of objects that are called as functions, `__call__` is what may be one.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function. Blocks.

    A coroutine function runs on an event loop of its own, in a thread of its own, so that this
    also works where a loop is running.
    """
    if not is_asynchronous(function):
        return function(*arguments)

    async def run() -> Any:
        return await function(*arguments)

    context = contextvars.copy_context()  # LlamaIndex keeps its current span there
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="coroutine") as thread:
        return thread.submit(lambda: context.run(asyncio.run, run())).result()


def run_on_own_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that takes long on an event loop of its own. Blocks.

    That is in a thread of its own where a loop is running in this one. An interruption, such as
    Ctrl-C, cancels the coroutine, and is raised once it has ended.
    """
    if running_loop() is None:
        return asyncio.run(coroutine)
    cancel: list[Callable[[], object]] = []

    async def run() -> Result:
        task = asyncio.current_task()
        assert task is not None
        cancel.append(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        return await coroutine

    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="coroutine") as thread:
        running = thread.submit(lambda: context.run(asyncio.run, run()))
        try:
            return running.result()
        except BaseException:
            if not running.done() and cancel:
                with suppress(RuntimeError):  # it has just ended
                    cancel[0]()
            raise


async def acall(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function without blocking the event loop.

    A coroutine function is awaited; another one runs in a thread of the loop's executor.
    """
    if is_asynchronous(function):
        return await function(*arguments)
    return await asyncio.to_thread(_for_a_future, function, arguments)


async def run_in(
    threads: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any
) -> Result:
    """Call a function in one of some threads, with the context variables of the caller.

    A thread cannot be stopped: a caller who is cancelled waits until the function has returned, so
    that nothing of it runs on.
    """
    context = contextvars.copy_context()  # LlamaIndex keeps its current span there
    running = threads.submit(context.run, _for_a_future, function, arguments)
    future = asyncio.wrap_future(running)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not running.cancel():
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # or it would be reported as one that nobody retrieved
        raise


def _for_a_future(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    try:
        return function(*arguments)
    except StopIteration as error:
        # A future refuses it and is never done (python/cpython#112182, fixed in 3.12); this is what
        # a coroutine makes of it.
        raise RuntimeError(f"{function!r} raised StopIteration") from error


async def gather_or_cancel(awaitables: Iterable[Awaitable[Result]]) -> list[Result]:
    """Await all; where one fails, the others do not run on."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        await cancel_all(tasks)
        raise


async def cancel_all(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
