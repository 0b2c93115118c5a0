"""Functions of users are called in either colour, whatever kind of function they are."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading

import pytest

from llama_index_milvus_async._concurrency.drivers import (
    acall,
    call,
    gather_or_cancel,
    is_asynchronous,
)

number = contextvars.ContextVar("number", default=0)


def where(*arguments: int) -> tuple[int, int, int]:
    """Its thread, its context and its arguments."""
    return threading.get_ident(), number.get(), sum(arguments)


async def awhere(*arguments: int) -> tuple[int, int, int]:
    await asyncio.sleep(0)
    return where(*arguments)


class Object:
    async def __call__(self, *arguments: int) -> tuple[int, int, int]:
        return await awhere(*arguments)


blocking = pytest.mark.parametrize("function", [where, functools.partial(where, 0)])
asynchronous = pytest.mark.parametrize(
    "function", [awhere, functools.partial(awhere, 0), Object(), Object().__call__]
)


@blocking
async def test_a_blocking_function_runs_here_or_in_a_thread(function):
    number.set(7)
    assert not is_asynchronous(function)
    assert call(function, 1, 2) == (threading.get_ident(), 7, 3)
    thread, *rest = await acall(function, 1, 2)
    assert thread != threading.get_ident()
    assert rest == [7, 3]


@asynchronous
async def test_a_coroutine_function_runs_on_this_loop_or_on_one_in_a_thread(function):
    number.set(7)
    assert is_asynchronous(function)
    assert await acall(function, 1, 2) == (threading.get_ident(), 7, 3)
    thread, *rest = call(function, 1, 2)  # although a loop is running here
    assert thread != threading.get_ident()
    assert rest == [7, 3]


async def test_an_exception_is_the_callers():
    def fail() -> None:
        raise KeyError("own")

    async def afail() -> None:
        raise KeyError("own")

    for function in (fail, afail):
        with pytest.raises(KeyError, match="own"):
            call(function)
        with pytest.raises(KeyError, match="own"):
            await asyncio.wait_for(acall(function), 60)


async def test_stop_iteration_does_not_hang():
    def stop() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await asyncio.wait_for(acall(stop), 60)


async def test_where_one_of_several_fails_none_runs_on():
    ended: list[int] = []

    async def work(item: int) -> None:
        if item == 1:
            raise KeyError(item)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(item)

    with pytest.raises(KeyError):
        await gather_or_cancel(work(item) for item in range(3))
    assert ended == [0, 2]
    assert await gather_or_cancel(awhere(item) for item in range(3)) == [
        where(item) for item in range(3)
    ]
