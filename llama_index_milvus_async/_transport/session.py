"""What the process remembers of collections, whichever of its clients wrote to them.

The key is the canonical address, the database, and the real name of the collection, so that an
alias or another spelling of the address leads to the same memory. What goes through pymilvus' own
clients (`store.client`, `store.aclient`) is not in it; pymilvus remembers their inserts itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .._concurrency.fair_lock import FairLock
from .._wire.stub import last_write
from .flushing import UnflushedRows
from .lite import CollectionLocks

#: Under "Session" Milvus shows a process its own inserts, but its own deletes only from the next
#: time tick on (0.2 s by default). Reads that follow an own delete within this many seconds ask for
#: "Strong"; the margin is for servers whose ticks lag.
DELETE_SETTLES_AFTER = 3.0

#: Milvus' levels, by `common.proto`'s numbers.
_LEVELS = {"Strong": 0, "Session": 1, "Bounded": 2, "Eventually": 3}
#: Timestamps with a meaning of their own: the newest, and one that the server chooses.
_TIMESTAMPS = {"Strong": 0, "Bounded": 2}
#: A timestamp that every server has reached.
_ANY = 1
_WRITES = frozenset({"insert", "upsert", "delete"})


_writing = threading.Lock()


@dataclass(slots=True)
class CollectionMemory:
    """What is remembered of one collection.

    Attributes:
        last_write: Milvus' timestamp of the last insert or upsert.
        deleted_at: When something was last deleted, by the clock of `time.monotonic`.
        locks: Who may use it at the same time, `None` where the engine does not care.
        partitions: Partitions that were there when the process last asked for them.
        unflushed: The rows that were written since the last flush; counted on Milvus Lite only.
        writes: How many inserts and upserts Milvus has acknowledged.
        rewriting: Held alone by who reads rows to write them again, and shared by all other writes.
        replica_number: How many copies to load; `None` for Milvus' own number.
    """

    last_write: int = 0
    deleted_at: float = -math.inf
    locks: CollectionLocks | None = None
    writes: int = 0
    replica_number: int | None = None
    unflushed: UnflushedRows = field(default_factory=UnflushedRows)
    partitions: set[str] = field(default_factory=set)
    rewriting: FairLock = field(default_factory=FairLock)

    def needed_locks(
        self, operation: str, *, rewriting: bool, alone: bool = False
    ) -> Sequence[tuple[FairLock, bool]]:
        """The locks that an operation needs, in their order, and whether it shares each.

        Args:
            operation: The operation.
            rewriting: Whether its caller holds that lock.
            alone: Whether nothing may be under way beside it, where the engine cares.
        """
        locks = [(self.rewriting, True)] if operation in _WRITES and not rewriting else []
        if self.locks is None:
            return locks
        return [*locks, *self.locks.needed(operation, alone=alone)]

    def note_write(self, timestamp: int) -> None:
        """Remember an insert or upsert."""
        with _writing:
            self.last_write = max(self.last_write, timestamp)
            self.writes += 1

    def note_delete(self) -> None:
        """Remember a delete, which may have happened although it failed."""
        self.deleted_at = time.monotonic()

    @property
    def was_just_deleted_from(self) -> bool:
        """Whether "Session" may not show yet what this process has deleted."""
        return time.monotonic() - self.deleted_at < DELETE_SETTLES_AFTER


_Key = tuple[str, str, str]
_memories: dict[_Key, CollectionMemory] = {}
_real_names: dict[_Key, str] = {}


@dataclass(frozen=True, slots=True)
class Session:
    """The memory of one database.

    Attributes:
        place: The canonical address.
        database: The database, empty for the default one.
        endpoint: Host and port, by which pymilvus remembers the writes of its own clients.
    """

    place: str
    database: str
    endpoint: str

    def memory(self, collection_name: str) -> CollectionMemory:
        """What is remembered of a collection, or of an alias' collection."""
        key = (self.place, self.database, collection_name)
        if real_name := _real_names.get(key):
            key = (self.place, self.database, real_name)
        memory = _memories.get(key)
        return _memories.setdefault(key, CollectionMemory()) if memory is None else memory

    def note_lost_connection(self) -> None:
        """Remember that a server may have been started anew."""
        for (place, *_), memory in list(_memories.items()):
            if place == self.place and memory.locks is not None:
                memory.locks.opened.lost += 1

    def read_bound(self, collection_name: str, level: str) -> tuple[int, int]:
        """What a read has to ask for, to mean a consistency level.

        Returns:
            The level's number, and the timestamp that the server has to have reached.
        """
        timestamp = _TIMESTAMPS.get(level, _ANY)
        if level == "Session":
            memory = self.memory(collection_name)
            if memory.was_just_deleted_from:
                return _LEVELS["Strong"], _TIMESTAMPS["Strong"]
            theirs = last_write(self.endpoint, self.database, collection_name)
            timestamp = max(memory.last_write, theirs) or _ANY
        return _LEVELS[level], timestamp

    def note_collection(self, name: str, real_name: str, *, locks: bool) -> None:
        """Remember what a collection is really called, and whether its users need locks."""
        key = (self.place, self.database, name)
        if name == real_name:
            _real_names.pop(key, None)
        else:
            _real_names[key] = real_name
        memory = self.memory(name)
        memory.partitions.clear()
        if locks and memory.locks is None:
            memory.locks = CollectionLocks()


def after_fork_in_child() -> None:
    """Forget the locks, which threads of the parent may hold, and flushes that they wait for."""
    global _writing
    _writing = threading.Lock()
    for memory in _memories.values():
        memory.rewriting = FairLock()
        memory.unflushed = UnflushedRows()
        if memory.locks is not None:
            memory.locks = CollectionLocks()
