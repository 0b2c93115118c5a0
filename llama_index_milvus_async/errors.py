"""The exceptions of this package.

All of them are [`MilvusVectorStoreError`][llama_index_milvus_async.errors.MilvusVectorStoreError];
each is also the built-in (or pymilvus) exception that callers already catch in its place:

    MilvusVectorStoreError
    ├── ConfigurationError (ValueError)          an argument of the constructor or of a call
    ├── NodeError (ValueError)                   nodes that cannot be stored; nothing was written
    ├── FilterError (ValueError)                 a filter that Milvus cannot express
    ├── QueryError (ValueError)                  a query that cannot be asked
    ├── CollectionError                          the collection does not fit the store
    ├── RowError (ValueError)                    a stored row that cannot become a node
    ├── EncoderError (ValueError)                what an embedding function returned
    ├── MigrationError                           a copy that did not end with the rows of its source
    ├── IngestionError                           `aingest` stopped; says what was written
    ├── StoreClosedError                         the store was closed
    ├── LiteNotInstalledError (ImportError)      a `.db` URI without Milvus Lite
    ├── PymilvusNotSupportedError (ImportError)  a pymilvus that the store cannot use
    └── ServerError (MilvusException)            Milvus refused, failed or did not answer
        ├── UnreachableError (ConnectionError)   no connection could be made
        │   ├── CertificateError                 the server's certificate is not trusted
        │   └── LiteFileError                    the `.db` path cannot be opened
        ├── AuthenticationError                  token or password refused
        │   └── PermissionDeniedError            a privilege is missing
        ├── RequestTimeoutError (TimeoutError)   no answer within `timeout`
        └── PartialWriteError                    some batches of one call were written
            └── WriteOutcomeUnknownError         of some batches nobody knows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymilvus.exceptions import MilvusException

__all__ = [
    "AuthenticationError",
    "CertificateError",
    "CollectionError",
    "ConfigurationError",
    "EncoderError",
    "FilterError",
    "IngestionError",
    "LiteFileError",
    "LiteNotInstalledError",
    "MigrationError",
    "MilvusVectorStoreError",
    "NodeError",
    "PartialWriteError",
    "PermissionDeniedError",
    "PymilvusNotSupportedError",
    "QueryError",
    "RequestTimeoutError",
    "RowError",
    "ServerError",
    "StoreClosedError",
    "UnreachableError",
    "WriteOutcomeUnknownError",
]


def abridged(text: str, most: int) -> str:
    """A text for a message: its beginning and its end, where it is longer than `most`."""
    half = most // 2
    return text if len(text) <= 2 * half else f"{text[:half]} … {text[-half:]}"


class MilvusVectorStoreError(Exception):
    """Base of every exception that this package raises."""


class ConfigurationError(MilvusVectorStoreError, ValueError):
    """An argument is not allowed; the message says what is."""


class NodeError(MilvusVectorStoreError, ValueError):
    """Nodes cannot be stored; raised before anything is written.

    Attributes:
        problems: One `(node id, what is wrong with it)` pair for each problem found, over all
            nodes of the call.
    """

    #: Begins the message.
    NOTHING_WRITTEN = "Nothing was written. "

    _SHOWN = 10
    _SHOWN_CHARACTERS = 400  # of a problem; ids and keys may be as long as Milvus allows

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = list(problems)
        shown = [
            f"node {self._shown(node_id)!r}: {self._shown(problem)}"
            for node_id, problem in self.problems[: self._SHOWN]
        ]
        if len(self.problems) > self._SHOWN:
            shown.append(f"and {len(self.problems) - self._SHOWN} more (see .problems)")
        super().__init__(self.NOTHING_WRITTEN + "; ".join(shown))

    @classmethod
    def _shown(cls, text: str) -> str:
        return abridged(text, cls._SHOWN_CHARACTERS)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class FilterError(MilvusVectorStoreError, ValueError):
    """A filter cannot be expressed in Milvus; it is never dropped or approximated."""

    _SHOWN_CHARACTERS = 2_000  # values may be of any length, and messages end up in logs

    def __init__(self, message: str) -> None:
        super().__init__(abridged(message, self._SHOWN_CHARACTERS))


class QueryError(MilvusVectorStoreError, ValueError):
    """A query lacks what its mode needs, or asks for what is not supported."""


class CollectionError(MilvusVectorStoreError):
    """The collection in Milvus does not fit the arguments of the store."""


class RowError(MilvusVectorStoreError, ValueError):
    """A row that was read from Milvus cannot become a node."""


class EncoderError(MilvusVectorStoreError, ValueError):
    """An embedding function or model returned something other than embeddings of its texts."""


class MigrationError(MilvusVectorStoreError):
    """A copy of a collection stopped, or did not end with the rows of its source.

    What has arrived is kept: calling again goes on.

    Attributes:
        missing: Ids that did not arrive, the first thousand of them.
        extra: Ids in the target that the source does not have, the first thousand of them.
    """

    def __init__(
        self, message: str, missing: Sequence[str] = (), extra: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.missing = list(missing)
        self.extra = list(extra)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.missing, self.extra)


class IngestionError(MilvusVectorStoreError):
    """An ingestion stopped.

    `__cause__` is what stopped it: an error of the source, of a transformation or of Milvus.
    Batches that were being written then have been written, and nothing of it runs any more.

    Attributes:
        documents: How many documents are complete: the first ones of the source. The rows of those
            after them are missing in part or altogether.
        nodes: How many nodes were written, all together.
        written: Ids of the nodes that were written of documents that are not complete.
        not_written: Ids of nodes that were made and not written.
        unknown: Ids of nodes that may have been written: the connection was lost, or the time was
            over, before Milvus answered.
    """

    def __init__(
        self,
        reason: str,
        documents: int,
        nodes: int,
        written: Sequence[str] = (),
        not_written: Sequence[str] = (),
        unknown: Sequence[str] = (),
    ) -> None:
        state = "Nothing was written"
        if nodes or unknown:
            doubt = f", and {len(unknown)} may have been written or not" if unknown else ""
            state = (
                f"{nodes} nodes were written{doubt}. Of the documents of the source the first "
                f"{documents} are complete; ingest the others again"
            )
        super().__init__(f"The ingestion stopped: {reason}. {state}")
        self.reason = reason
        self.documents = documents
        self.nodes = nodes
        self.written = list(written)
        self.not_written = list(not_written)
        self.unknown = list(unknown)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.reason,
            self.documents,
            self.nodes,
            self.written,
            self.not_written,
            self.unknown,
        )


class StoreClosedError(MilvusVectorStoreError):
    """The store was used after `close()` or `aclose()`.

    It is not a `RuntimeError`: LlamaIndex's `asyncio_run` takes each of those for a nested event
    loop, and tells the user to apply `nest_asyncio`.
    """


def store_closed() -> StoreClosedError:
    """The error of whatever is asked of a closed store."""
    return StoreClosedError("the store is closed; build a new one to go on")


class LiteNotInstalledError(MilvusVectorStoreError, ImportError):
    """The URI names a local file, and Milvus Lite is not installed, too old or broken.

    The message says which of these, and `__cause__` is what its import raised.
    """


class PymilvusNotSupportedError(MilvusVectorStoreError, ImportError):
    """The installed pymilvus does not have what the store sends its requests with.

    Raised before anything is sent. The message names the installed version and those to install.
    """


class ServerError(MilvusVectorStoreError, MilvusException):  # type: ignore[misc]
    """Milvus refused or failed a request.

    Attributes:
        operation: The request that failed, e.g. `"insert"`.
        code: Milvus's error code, 0 where there is none.
        nothing_done: Whether the request has certainly had no effect.
        is_answer: Whether the error is Milvus's answer, which refuses what it was asked for. It is
            `False` where no answer came.
    """

    nothing_done = False
    is_answer = True

    def __init__(self, operation: str, message: str, code: int = 0) -> None:
        MilvusException.__init__(self, code=code, message=message)
        self.operation = operation

    def __str__(self) -> str:
        code = f" (code {self.code})" if self.code else ""
        return f"{self.operation} failed{code}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"nothing_done": self.nothing_done, "is_answer": self.is_answer}
        return type(self), (self.operation, self.message, self.code), state


class UnreachableError(ServerError, ConnectionError):
    """No connection to Milvus could be made, or it was lost."""

    is_answer = False


class CertificateError(UnreachableError):
    """The certificate of the server is not trusted, or names another server."""


class LiteFileError(UnreachableError):
    """Milvus Lite cannot open the `.db` path.

    The folder above it is missing, another process has it open, or it is a file: Milvus Lite 3
    keeps a folder there, and a database of Milvus Lite 2 is a file.
    """


class AuthenticationError(ServerError):
    """Milvus did not accept the token or password."""


class PermissionDeniedError(AuthenticationError):
    """The user is known and may not do this."""


class RequestTimeoutError(ServerError, TimeoutError):
    """Milvus did not answer within `timeout` seconds."""

    is_answer = False


class PartialWriteError(ServerError):
    """A batch of one call failed after others had been written.

    Attributes:
        written: Ids of the nodes whose batch Milvus acknowledged.
        not_written: Ids of the nodes whose batch was refused or not sent.
        unknown: Ids of the nodes whose batch may have been written: the connection was lost, or
            the time was over, before Milvus answered.
    """

    def __init__(
        self,
        operation: str,
        message: str,
        code: int = 0,
        written: Sequence[str] = (),
        not_written: Sequence[str] = (),
        unknown: Sequence[str] = (),
    ) -> None:
        super().__init__(operation, message, code)
        self.written = list(written)
        self.not_written = list(not_written)
        self.unknown = list(unknown)

    def __str__(self) -> str:
        outcomes = []
        if self.written or self.not_written:
            outcomes.append(
                f"{len(self.written)} nodes of this call were written, {len(self.not_written)} "
                "were not (ids in .written and .not_written)"
            )
        if self.unknown:
            outcomes.append(
                f"{len(self.unknown)} nodes of this call may have been written or not (ids in "
                f".unknown): {self._remedy}"
            )
        return f"{super().__str__()} — {'; '.join(outcomes)}"

    _remedy = "write them again"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.operation,
            self.message,
            self.code,
            self.written,
            self.not_written,
            self.unknown,
        )


class WriteOutcomeUnknownError(PartialWriteError):
    """A connection or a timeout ended while rows were being inserted: they may be there or not.

    It is raised with `upsert_mode=False` only: the rows were not sent again, because a server would
    keep them twice. Look which of `unknown` are there (`get_nodes`) before adding them again, or
    add them with `upsert_mode=True`, by which the store repeats a call by itself.
    """

    is_answer = False

    _remedy = "look for them before adding them again, or use upsert_mode=True"
