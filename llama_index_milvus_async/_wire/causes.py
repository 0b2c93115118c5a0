"""What a failure means in plain words, and what to do: one table from texts to messages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from .address import Address

_Message = Callable[[Address, re.Match[str]], str]


def _speaks_no_tls(address: Address, match: re.Match[str]) -> str:
    return (
        "the server does not speak TLS; write "
        f"{'http://' + address.endpoint!r}, or leave out secure=True"
    )


def _nobody_listens(address: Address, match: re.Match[str]) -> str:
    return f"nothing listens at {address.endpoint} (Connection refused). Is Milvus running?"


def _unknown_host(address: Address, match: re.Match[str]) -> str:
    return f"the name of the host in {address.endpoint!r} is not known. Is it spelled right?"


def _no_database(address: Address, match: re.Match[str]) -> str:
    name = match["name"]
    return (
        f"db_name {name!r} does not exist. Create it, MilvusClient({address.uri!r})"
        f".create_database({name!r}), or name another one"
    )


def _too_few_nodes(address: Address, match: re.Match[str]) -> str:
    return (
        "replica_number is more than the server has query nodes, of which each copy needs one; "
        "pass a smaller one"
    )


def _too_many(what: str) -> _Message:
    def tell(address: Address, match: re.Match[str]) -> str:
        return f"{what}; the server allows {match['most']}"

    return tell


def missing_partition(name: str) -> str:
    """What to say of a partition that does not exist."""
    return (
        f"partition {name!r} does not exist. Create it, "
        f"store.client.create_partition(store.collection_name, {name!r}), or name another one"
    )


def _no_partition(address: Address, match: re.Match[str]) -> str:
    return missing_partition(match["name"])


# What gRPC says of a connection that could not be made.
_OF_CONNECTIONS: Sequence[tuple[re.Pattern[str], _Message]] = (
    (re.compile("WRONG_VERSION_NUMBER"), _speaks_no_tls),
    (re.compile("Connection refused"), _nobody_listens),
    (re.compile("address lookup failed|DNS resolution failed|errors resolving"), _unknown_host),
)
# What Milvus and Milvus Lite say of a request.
_OF_REQUESTS: Sequence[tuple[re.Pattern[str], _Message]] = (
    (re.compile(r"database:(?P<name>\S+) not found"), _no_database),
    (re.compile(r"database not found\[database=(?P<name>[^\]]+)\]"), _no_database),
    (re.compile(r"^database '(?P<name>[^']+)' does not exist"), _no_database),
    (re.compile(r"partition not found\[partition=(?P<name>[^\]]+)\]"), _no_partition),
    (re.compile(r"partition name (?P<name>.+) not found"), _no_partition),
    (re.compile(r"\bnodes? not enough"), _too_few_nodes),
    (
        re.compile(r"maximum shards's number should be limited to (?P<most>\d+)"),
        _too_many("num_shards is too large"),
    ),
    (
        re.compile(r"partition number \(\d+\) exceeds max configuration \((?P<most>\d+)\)"),
        _too_many("num_partitions is too large"),
    ),
    (
        re.compile(r"maximum field's number should be limited to (?P<most>\d+)"),
        _too_many("the collection would have too many fields, each of scalar_fields one"),
    ),
)
#: Milvus' code for a partition that does not exist; Milvus Lite adds nothing but its name.
NO_PARTITION = 200
_NAME = re.compile("^(?P<name>.+)$")


def cause_of_no_connection(address: Address, message: str) -> str:
    """Why a connection could not be made, empty where the text of gRPC does not tell."""
    return _first(_OF_CONNECTIONS, address, message)


def cause_of_refusal(address: Address, code: int, message: str) -> str:
    """Why a request was refused, empty where Milvus' own text has to do."""
    cause = _first(_OF_REQUESTS, address, message)
    if not cause and code == NO_PARTITION and (match := _NAME.match(message)):
        return _no_partition(address, match)
    return cause


def why_lite_cannot_open(path: str, reasons: Sequence[BaseException]) -> str:
    """Why Milvus Lite cannot open a path: one cause, the first that holds.

    Args:
        path: The path.
        reasons: What Milvus Lite has logged.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"the folder {folder!r} does not exist; make it"
    if os.path.isfile(path):
        return (
            "it is a file, and Milvus Lite 3 keeps a folder there. A database of Milvus Lite 2 is "
            "such a file and cannot be opened: export it with that version, or name another path"
        )
    reasons = reasons or _refusal_of_lite(path)
    if any(type(reason).__name__ == "DataDirLockedError" for reason in reasons):
        return (
            "another process has it open, and Milvus Lite serves one process at a time. End that "
            f"one, or run a server for both: milvus-lite server --data-dir {path}"
        )
    return "; ".join(f"{type(reason).__name__}: {reason}" for reason in reasons) or "see its log"


def _refusal_of_lite(path: str) -> Sequence[BaseException]:
    """What Milvus Lite raises at a path, where logging is set up so that it has logged nothing."""
    try:
        from milvus_lite import MilvusLite
    except ImportError:  # version 2 has no such class
        return []
    try:
        MilvusLite(path).close()
    except Exception as error:
        return [error]
    return []


def _first(
    causes: Sequence[tuple[re.Pattern[str], _Message]], address: Address, message: str
) -> str:
    for pattern, tell in causes:
        if match := pattern.search(message):
            return tell(address, match)
    return ""
