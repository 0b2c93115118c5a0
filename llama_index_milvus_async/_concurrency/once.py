"""Values that are made once, for threads and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from .exceptions import own_copy

T = TypeVar("T")


class _InterruptedError(Exception):
    """Who made the value was interrupted."""


@contextmanager
def _own_errors() -> Iterator[None]:
    """Have each caller raise an exception of its own."""
    try:
        yield
    except _InterruptedError:
        raise
    except Exception as error:
        raise own_copy(error) from error.__cause__


class Once(Generic[T]):
    """Makes a value once, for callers on any number of threads and event loops.

    The first caller makes it; others wait without holding their loop. An asynchronous caller
    has it made in a thread, so that neither its cancellation nor the end of its loop undoes the
    work, and a blocking caller on the same loop's thread cannot deadlock. After a failure the
    next caller tries again.

    Args:
        make: Makes the value.
        keep: Whether a value is kept. Another one is for those who are waiting for it only, and
            the next caller makes it again.
    """

    def __init__(
        self, make: Callable[[], T], keep: Callable[[T], bool] = lambda value: True
    ) -> None:
        self._make = make
        self._keep = keep
        self._lock = threading.Lock()
        self._running: Future[T] | None = None
        self._done: Future[T] | None = None

    def get(self) -> T:
        """Return the value, making it in this thread or waiting for the thread that does."""
        while True:
            future, mine = self._claim()
            if mine:
                self._run(future)
            with suppress(_InterruptedError), _own_errors():
                return future.result()

    async def aget(self) -> T:
        """Return the value, making it in a new thread or waiting for the thread that does."""
        done = self._done
        if done:
            return done.result()
        while True:
            future, mine = self._claim()
            if mine:
                name = "llama-index-milvus-async-ready"
                threading.Thread(target=self._run, args=(future,), name=name, daemon=True).start()
            with suppress(_InterruptedError), _own_errors():
                return await asyncio.wrap_future(future)

    def forget(self, value: T | None = None) -> None:
        """Have the next caller make the value again.

        Args:
            value: What is out of date; nothing happens where another value is there already.
                By default whatever is there is.
        """
        with self._lock:
            if self._done is not None and (value is None or self._done.result() is value):
                self._done = None

    def _claim(self) -> tuple[Future[T], bool]:
        with self._lock:
            if self._done:
                return self._done, False
            if self._running:
                return self._running, False
            self._running = Future()
            # A running future cannot be cancelled: a cancelled waiter only stops waiting.
            self._running.set_running_or_notify_cancel()
            return self._running, True

    def _run(self, future: Future[T]) -> None:
        try:
            value = self._make()
        except BaseException as error:
            with self._lock:
                self._running = None
            if isinstance(error, Exception):
                future.set_exception(error)
                return
            # Ctrl-C is for the thread that it was sent to; others make the value themselves.
            future.set_exception(_InterruptedError())
            raise
        else:
            future.set_result(value)
            with self._lock:
                self._running, self._done = None, future if self._keep(value) else None

    def after_fork_in_child(self) -> None:
        """Forget a thread of the parent that was making the value."""
        self._lock = threading.Lock()
        self._running = None
