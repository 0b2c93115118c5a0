"""What Milvus Lite needs of its clients: locks for a collection, and its server in this process."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from .._concurrency.fair_lock import FairLock
from .._wire.address import Address
from ..errors import LiteNotInstalledError

logger = logging.getLogger(__name__)

#: Rows of Milvus Lite that may be unflushed: each adds 75 µs to every search.
UNFLUSHED_ROWS = 1_000


@dataclass(frozen=True)
class CollectionLocks:
    """Who may use a collection of Milvus Lite (3.2.2) at the same time.

    Attributes:
        writers: One at a time. Killed after several had written at the same time, it loses rows
            that it had acknowledged.
        users: Readers together, a flush alone: reads do not see the rows that a flush is just
            writing to a file, and it does not drop a collection meanwhile.
    """

    writers: FairLock = field(default_factory=FairLock)
    users: FairLock = field(default_factory=FairLock)

    def needed(self, operation: str) -> Sequence[tuple[FairLock, bool]]:
        """The locks that an operation needs, and whether it shares each."""
        return [(getattr(self, name), shared) for name, shared in _NEEDED.get(operation, ())]


_NEEDED = {
    "insert": [("writers", False)],
    "upsert": [("writers", False)],
    "delete": [("writers", False)],
    "flush": [("writers", False), ("users", False)],
    "drop_collection": [("writers", False), ("users", False)],
    "search": [("users", True)],
    "hybrid_search": [("users", True)],
    "query": [("users", True)],
}

_opening: dict[str, threading.Lock] = {}


def open_lock(address: Address) -> AbstractContextManager[object]:
    """Held while a collection of Milvus Lite in this process is set up.

    Milvus Lite (up to 3.2.2) opens a collection once for each of those that first ask for it at
    the same time, and then some write where others do not look.
    """
    if not address.is_lite:
        return nullcontext()
    return _opening.setdefault(address.place, threading.Lock())


def check_installed(address: Address) -> None:
    """Check that Milvus Lite is there where the URI needs it.

    Raises:
        LiteNotInstalledError: It is not.
    """
    if not address.is_lite:
        return
    try:
        import milvus_lite  # noqa: F401
    except ImportError as error:
        raise LiteNotInstalledError(
            f"the URI {address.uri!r} names a local file, which Milvus Lite serves, and it is not "
            'installed. Run `pip install "llama-index-milvus-async[lite]"`, or pass the URI of a '
            'server, for example "http://localhost:19530"'
        ) from error


def after_fork_in_child() -> None:
    """Start without the parent's locks, and leave the files that it has open to it.

    Milvus Lite would close them when the child ends, and give up the parent's locks.
    """
    _opening.clear()
    try:
        _leave_files_to_parent()
    except Exception as error:  # a private name of Milvus Lite has changed
        logger.warning(
            "Milvus Lite has changed: this forked process may close the files of its parent when "
            "it ends (%r)",
            error,
        )


def _leave_files_to_parent() -> None:
    module: Any = sys.modules.get("milvus_lite.server_manager")
    manager = getattr(module, "server_manager_instance", None)
    if manager is None:
        return
    of_parent = set(manager._servers)

    def release_own() -> None:
        for path in set(manager._servers) - of_parent:
            manager.release_server(path)

    atexit.unregister(manager.release_all)
    atexit.register(release_own)
