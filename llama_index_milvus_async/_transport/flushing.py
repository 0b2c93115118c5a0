"""When a collection of Milvus Lite is flushed in the background.

Unflushed rows slow searches down, and a flush keeps writers waiting. So it begins when somebody
searches, or when nobody writes.
"""

from __future__ import annotations

import threading
import time

#: Unflushed rows that are worth a flush: each adds 75 µs to every search.
UNFLUSHED_ROWS = 1_000
#: So many are flushed also while rows are written and nobody searches: the first search after them
#: would take 0.75 s longer.
MAX_UNFLUSHED_ROWS = 10_000
#: Seconds without a write after which nobody writes.
QUIET_SECONDS = 0.5


class UnflushedRows:
    """The rows of a collection that were written since its last flush.

    Whoever is told that a flush is needed starts a thread, which waits until the flush is due,
    makes it, and says that it has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = 0
        self._wrote_at = 0.0
        self._is_awaited = False
        self._due = threading.Event()

    def wrote(self, rows: int) -> bool:
        """Count rows; returns whether a flush is needed that nobody waits for yet."""
        with self._lock:
            self._rows += rows
            self._wrote_at = time.monotonic()
            if self._rows >= MAX_UNFLUSHED_ROWS:
                self._due.set()
            return self._claim()

    def searched(self) -> bool:
        """Note a search; returns whether a flush is needed that nobody waits for yet."""
        if self._rows < UNFLUSHED_ROWS:
            return False
        with self._lock:
            self._due.set()
            return self._claim()

    def _claim(self) -> bool:
        """Whether a flush is needed that nobody waits for; the caller is to wait for it."""
        needed = self._rows >= UNFLUSHED_ROWS and not self._is_awaited
        self._is_awaited = self._is_awaited or needed
        return needed

    def hasten(self) -> None:
        """Have the thread that waits go on."""
        self._due.set()

    def wait_until_due(self) -> None:
        """Wait until a flush is due. Blocks."""
        while (quiet := self._wrote_at + QUIET_SECONDS - time.monotonic()) > 0:
            if self._due.wait(quiet):
                break

    def begin_flush(self) -> None:
        """Count anew; whoever makes a flush calls it before."""
        with self._lock:
            self._rows = 0
            self._due.clear()

    def ended(self) -> None:
        """Tell that the flush has been made, or is given up."""
        self._is_awaited = False
