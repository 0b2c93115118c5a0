"""A lock for callers of both colours."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress


class Turn(Future[None]):
    """A place in the line; done once it is this caller's turn.

    Args:
        loop: The event loop that the caller waits on, `None` for one that blocks its thread.
        shared: Whether others that share may have their turns at the same time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, shared: bool) -> None:
        super().__init__()
        self.loop = loop
        self.shared = shared

    @property
    def is_abandoned(self) -> bool:
        """Whether its caller will never leave."""
        return self.loop is not None and self.loop.is_closed()


class Turns:
    """Lets one caller at a time have its turn, or several that share; first come, first served.

    The callers may be on any threads and event loops. Each asks, waits, and leaves, whatever has
    happened meanwhile:

        turn = turns.ask(loop)
        try:
            ...  # wait until it is done
        finally:
            turns.leave(turn)
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may end a forgotten coroutine, which leaves, anywhere.
        self._lock = threading.RLock()
        self._line: deque[Turn] = deque()  # whose turn it is, then those who wait
        self._rests_until = 0.0
        #: Times that somebody has left.
        self.moves = 0

    def ask(self, loop: asyncio.AbstractEventLoop | None, *, shared: bool = False) -> Turn:
        """Stand in line."""
        turn = Turn(loop, shared)
        with self._lock:
            self._line.append(turn)
            self._admit()
        return turn

    def leave(self, turn: Turn, *, rest: float = 0.0) -> None:
        """End a turn, or the wait for it.

        Args:
            turn: The turn.
            rest: Seconds that the next ones should wait before they begin.
        """
        with self._lock:
            self._rests_until = max(self._rests_until, time.monotonic() + rest)
            turn.cancel()
            with suppress(ValueError):  # it was taken for abandoned
                self._line.remove(turn)
            self.moves += 1
            self._admit()

    def skip(self, moves: int) -> None:
        """Take the turns of now for abandoned, unless somebody has left since `moves`."""
        with self._lock:
            if self.moves == moves:
                self._line = deque(turn for turn in self._line if not turn.done())
                self.moves += 1
                self._admit()

    def rest(self) -> float:
        """Seconds for which whoever has a turn should not begin."""
        return max(0.0, self._rests_until - time.monotonic())

    def has(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether one of the line needs this loop to go on."""
        with self._lock:
            return any(turn.loop is loop for turn in self._line)

    def _admit(self) -> None:
        while self._line and self._line[0].is_abandoned:
            self._line.popleft()
        for position, turn in enumerate(self._line):
            if position and not turn.shared:
                break
            if not turn.done() and turn.set_running_or_notify_cancel():
                turn.set_result(None)
            if not turn.shared:
                break
