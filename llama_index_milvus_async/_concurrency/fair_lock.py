"""A fair shared/exclusive lock for threads and event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress


class Ticket(Future[None]):
    """A place among the waiters of a lock; done once its caller holds the lock.

    Args:
        loop: The event loop that the caller waits on, `None` for one that blocks its thread.
        shared: Whether others that share may hold the lock at the same time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, shared: bool) -> None:
        super().__init__()
        self.loop = loop
        self.shared = shared

    @property
    def is_abandoned(self) -> bool:
        """Whether its caller will never release it."""
        return self.loop is not None and self.loop.is_closed()

    @property
    def is_stalled(self) -> bool:
        """Whether its caller holds the lock, and its loop does not run.

        A thread that holds it is at work and releases it, however long that takes.
        """
        return self.done() and self.loop is not None and not self.loop.is_running()


class FairLock:
    """Lets one caller at a time hold it, or several that share; first come, first served.

    The callers may be on any threads and event loops. Each enqueues, waits, and releases, whatever
    has happened meanwhile:

        ticket = lock.enqueue(loop)
        try:
            ...  # wait until it is done
        finally:
            lock.release(ticket)
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may end a forgotten coroutine, which releases, anywhere.
        self._lock = threading.RLock()
        self._waiters: deque[Ticket] = deque()  # those who hold it, then those who wait
        self._cools_until = 0.0
        #: Counts the releases.
        self.generation = 0

    def enqueue(self, loop: asyncio.AbstractEventLoop | None, *, shared: bool = False) -> Ticket:
        """Ask for the lock."""
        ticket = Ticket(loop, shared)
        with self._lock:
            self._waiters.append(ticket)
            self._admit()
        return ticket

    def release(self, ticket: Ticket, *, cooldown: float = 0.0) -> None:
        """Give the lock back, or stop waiting for it.

        Args:
            ticket: What `enqueue` returned.
            cooldown: Seconds that the next holders should wait before they begin.
        """
        with self._lock:
            self._cools_until = max(self._cools_until, time.monotonic() + cooldown)
            ticket.cancel()
            with suppress(ValueError):  # it was evicted
                self._waiters.remove(ticket)
            self.generation += 1
            self._admit()

    def evict_stalled(self, generation: int) -> None:
        """Presume the holders gone whose loop stands still, unless somebody has released since.

        Args:
            generation: What `generation` was before the caller waited.
        """
        with self._lock:
            if self.generation == generation:
                self._waiters = deque(ticket for ticket in self._waiters if not ticket.is_stalled)
                self.generation += 1
                self._admit()

    def cooldown(self) -> float:
        """Seconds for which a holder should not begin."""
        return max(0.0, self._cools_until - time.monotonic())

    def needs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether one of the holders and waiters needs this loop to go on."""
        with self._lock:
            return any(ticket.loop is loop for ticket in self._waiters)

    def _admit(self) -> None:
        while self._waiters and self._waiters[0].is_abandoned:
            self._waiters.popleft()
        for position, ticket in enumerate(self._waiters):
            if position and not ticket.shared:
                break
            if not ticket.done() and ticket.set_running_or_notify_cancel():
                ticket.set_result(None)
            if not ticket.shared:
                break
