"""What is made once, for callers of both colours."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_index_milvus_async._concurrency.once import Once


def test_many_threads_get_what_one_of_them_makes():
    made = []
    ready = threading.Barrier(8)

    def make():
        made.append(threading.get_ident())
        return object()

    once = Once(make)

    def get():
        ready.wait()
        return once.get()

    with ThreadPoolExecutor(8) as threads:
        values = list(threads.map(lambda _: get(), range(8)))
    assert len(set(map(id, values))) == len(made) == 1


def test_after_a_failure_the_next_caller_tries_again():
    outcomes = iter([ValueError("not yet"), "value"])

    def make():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    once = Once(make)
    with pytest.raises(ValueError, match="not yet"):
        asyncio.run(once.aget())
    assert once.get() == asyncio.run(once.aget()) == "value"


def test_an_interruption_is_for_the_thread_that_makes_it_alone():
    """Others, who wait for it, make it themselves."""
    makers, begun, end = [], threading.Event(), threading.Event()

    def make():
        makers.append(threading.current_thread().name)
        if len(makers) == 1:
            begun.set()
            end.wait(30)
            raise KeyboardInterrupt
        return "value"

    once = Once(make)

    async def aget():
        waiting = asyncio.ensure_future(once.aget())
        await asyncio.sleep(0.05)
        waits.release()
        return await waiting

    waits = threading.Semaphore(0)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(once.get)
        assert begun.wait(30)
        others = [threads.submit(asyncio.run, aget()), threads.submit(once.get)]
        waits.acquire(timeout=30)
        end.set()
        assert [other.result(30) for other in others] == ["value"] * 2
        with pytest.raises(KeyboardInterrupt):
            first.result(30)
    assert len(makers) == 2


def test_each_waiter_has_an_exception_of_its_own():
    """Raising one adds to its traceback, and sets its context."""
    begun = threading.Barrier(9)

    def make():
        begun.wait(30)
        raise ValueError("not yet") from KeyError("why")

    once = Once(make)

    async def caught():
        try:
            await once.aget()
        except ValueError as error:
            return error

    async def main():
        waiters = [asyncio.ensure_future(caught()) for _ in range(8)]
        await asyncio.sleep(0)
        for _ in range(8):
            threading.Thread(target=begun.wait, args=(30,)).start()
        return await asyncio.gather(*waiters)

    errors = asyncio.run(main())
    assert len(set(map(id, errors))) == 8
    assert all(isinstance(error.__cause__, KeyError) for error in errors)


def test_what_is_forgotten_is_made_again_once():
    once = Once(object)
    first = once.get()
    once.forget(first)
    second = once.get()
    assert second is not first
    once.forget(first)  # by a caller that still has the first
    assert once.get() is second
    once.forget()
    assert asyncio.run(once.aget()) is not second
