"""What Milvus Lite needs of its clients: locks for a collection, and its server in this process."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .._concurrency.fair_lock import FairLock
from .._wire.address import Address
from ..errors import CollectionError, LiteNotInstalledError

logger = logging.getLogger(__name__)

#: Seconds after an answer in which a server is not started anew without a request being lost.
SECONDS_OF_NO_RESTART = 5.0


@dataclass
class Opened:
    """Whether a server of Milvus Lite has a collection open, as far as one can know.

    A server that was started anew opens it at the first request, and once for each of those that
    come at the same time: then some write where others do not look, and what they write is lost.
    So the first request after a lost connection goes alone. A client that sends nothing notices no
    restart, so the first request after a while goes alone too.

    Attributes:
        lost: How many connections were lost.
        lost_before: How many of them before the request that was answered last was sent.
        answered_at: When that was, by the clock of `time.monotonic`.
    """

    lost: int = 0
    lost_before: int = 0
    answered_at: float = field(default_factory=time.monotonic)

    @property
    def is_certain(self) -> bool:
        """Whether the server has surely not been started anew since the last answer."""
        just_now = time.monotonic() - self.answered_at < SECONDS_OF_NO_RESTART
        return just_now and self.lost == self.lost_before

    def note_answer(self, lost_before: int) -> None:
        """Remember that a request was answered, and how many connections were lost before it."""
        self.lost_before = max(self.lost_before, lost_before)
        self.answered_at = time.monotonic()


@dataclass(frozen=True)
class CollectionLocks:
    """Who may use a collection of Milvus Lite (3.2.2) at the same time.

    Attributes:
        writers: One at a time. Killed after several had written at the same time, it loses rows
            that it had acknowledged.
        users: Readers together, a flush alone: reads do not see the rows that a flush is just
            writing to a file, and it does not drop a collection meanwhile.
        opened: Whether a server has it open.
    """

    writers: FairLock = field(default_factory=FairLock)
    users: FairLock = field(default_factory=FairLock)
    opened: Opened = field(default_factory=Opened)

    def needed(self, operation: str, *, alone: bool = False) -> Sequence[tuple[FairLock, bool]]:
        """The locks that an operation needs, and whether it shares each.

        Args:
            operation: The operation.
            alone: Whether nothing may be under way beside it.
        """
        needed = _NEEDED.get(operation, ())
        return [
            (getattr(self, name), shared)
            for name, shared in (_ALONE if alone and needed else needed)
        ]


_ALONE = (("writers", False), ("users", False))
_NEEDED: dict[str, Sequence[tuple[str, bool]]] = {
    "insert": [("writers", False)],
    "upsert": [("writers", False)],
    "delete": [("writers", False)],
    "flush": _ALONE,
    "drop_collection": _ALONE,
    "search": [("users", True)],
    "hybrid_search": [("users", True)],
    "query": [("users", True)],
}

_INSTALL = 'pip install "llama-index-milvus-async[lite]"'

#: Servers and databases whose folders were removed.
_removed: list[Any] = []
_warned: set[str] = set()
_forgetting = threading.Lock()
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

        # As pymilvus does, which says of each failure that it is not installed.
        from milvus_lite.server_manager import server_manager_instance  # noqa: F401
    except Exception as error:
        raise LiteNotInstalledError(
            f"the URI {address.uri!r} names a local file, which Milvus Lite serves, and "
            f"{_why_not_there(error)}, or pass the URI of a server, for example "
            '"http://localhost:19530"'
        ) from error


def _why_not_there(error: Exception) -> str:
    """Whether Milvus Lite is not installed, too old for this environment, or broken."""
    if isinstance(error, ModuleNotFoundError) and error.name == "milvus_lite":
        return f"it is not installed. Run `{_INSTALL}`"
    installed, reason = "", f"{type(error).__name__}: {error}"
    with suppress(PackageNotFoundError):
        installed = version("milvus-lite")
    if isinstance(error, ModuleNotFoundError) and error.name == "pkg_resources":
        # Milvus Lite 2 imports it, and setuptools has it no longer from version 81 on.
        return (
            f"the installed version {installed} is too old for this environment ({reason}). Run "
            f'`{_INSTALL} --upgrade`, or `pip install "setuptools<81"` to keep its files'
        )
    return (
        f"the installed version {installed} is broken ({reason}). Run "
        "`pip install --force-reinstall milvus-lite`"
    )


def version_2(address: Address) -> str:
    """The version of a Milvus Lite 2, whose server does not tell it.

    In this process it is the installed one; elsewhere no more than "2" is known.
    """
    with suppress(PackageNotFoundError):
        if address.is_lite:
            return version("milvus-lite")
    return "2"


#: Which file is at a path: device and number.
FileId = tuple[int, int]


def open_file(address: Address) -> FileId | None:
    """Which `.db` folder is at the path of Milvus Lite in this process.

    It is told by the file `LOCK` in it: Milvus Lite holds that open, so that no other file can get
    its number while it runs, as another folder could.

    Returns:
        `None` where there is none, and for servers.
    """
    if not address.is_lite:
        return None
    try:
        status = os.stat(os.path.join(address.uri, "LOCK"))
    except OSError:
        return None
    return status.st_dev, status.st_ino


def forget_removed(address: Address) -> None:
    """Stop Milvus Lite in this process where its `.db` folder was removed.

    It would go on answering with the rows of the folder, and acknowledge new ones that nobody can
    read later.
    """
    if not address.is_lite:
        return
    try:
        with _forgetting:
            _stop_if_removed(address)
    except AttributeError as error:  # a private name of Milvus Lite has changed
        logger.warning(
            "Milvus Lite has changed: whether %r was removed is not noticed (%r)",
            address.uri,
            error,
        )


def _stop_if_removed(address: Address) -> None:
    module: Any = sys.modules["milvus_lite.server_manager"]
    manager = module.server_manager_instance
    path = os.path.abspath(address.uri)
    entry = manager._servers.get(path)
    if not isinstance(entry, tuple):
        return  # not open yet; or Milvus Lite 2, whose database is a file of another process
    server, database, *_ = entry
    opened = os.fstat(database._lock_fd)
    if open_file(address) == (opened.st_dev, opened.st_ino):
        return
    logger.warning(
        "%r was removed while this process had it open, with its rows; it is made anew",
        address.uri,
    )
    # Kept and not closed: it would write what it has in memory to what is at the path now. Its
    # `LOCK` stays open, so that whoever still has a client of it can tell.
    _removed.append(manager._servers.pop(path))
    server.stop(None)


def _unfinished(address: Address, collection_name: str) -> str | None:
    """The folder of a collection whose creation a crash has cut short."""
    if not address.is_lite:
        return None
    within = ("databases", address.database) if address.database else ()
    folder = os.path.join(address.uri, *within, "collections", collection_name)
    left = os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "schema.json"))
    return folder if left else None


def refuse_unfinished(address: Address, collection_name: str) -> None:
    """Refuse to create a collection in a folder that Milvus Lite will never accept.

    Raises:
        CollectionError: A crash has left one without a schema.
    """
    if folder := _unfinished(address, collection_name):
        raise CollectionError(
            f"collection {collection_name!r} was never finished: the folder {folder!r} has no "
            "schema, as a crash can leave it. Pass overwrite=True to make the collection anew, or "
            "remove that folder"
        )


def remove_unfinished(address: Address, collection_name: str) -> None:
    """Remove the folder of a collection whose creation a crash has cut short."""
    if folder := _unfinished(address, collection_name):
        shutil.rmtree(folder)


def warn_of_login(address: Address) -> None:
    """Say once of each place that Milvus Lite heeds no token and no password."""
    if not address.secrets or address.place in _warned:
        return
    _warned.add(address.place)
    logger.warning(
        "Milvus Lite has no logins: it ignores the token or password for %r, and everyone who "
        "reaches it can read and write everything",
        address.uri,
    )


def after_fork_in_child() -> None:
    """Start without the parent's locks, and leave the files that it has open to it.

    Milvus Lite would close them when the child ends, and give up the parent's locks.
    """
    global _forgetting
    _forgetting = threading.Lock()
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
