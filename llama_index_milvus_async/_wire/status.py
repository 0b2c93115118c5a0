"""Statuses of Milvus, and what pymilvus and gRPC raise, as this package's exceptions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from pymilvus.exceptions import (
    ConnectionConfigException,
    DataNotMatchException,
    MilvusException,
    ParamError,
)

from .._concurrency.backoff import NotSentError
from ..errors import (
    AuthenticationError,
    CertificateError,
    ConfigurationError,
    LiteFileError,
    MilvusVectorStoreError,
    PermissionDeniedError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
)
from .address import Address
from .causes import cause_of_no_connection, cause_of_refusal, why_lite_cannot_open
from .logs import expected_failures

#: Operations whose failure has certainly changed nothing.
READS = frozenset(
    {
        "connect",
        "describe_collection",
        "describe_index",
        "get",
        "get_load_state",
        "get_server_version",
        "has_collection",
        "has_partition",
        "hybrid",
        "hybrid_search",
        "list_indexes",
        "list_partitions",
        "query",
        "search",
    }
)

_CONNECT_FAILED = 2
# What pymilvus says where it has waited for a server's work: to load, to index, to flush.
_WAITED_TOO_LONG = re.compile(
    r"\[\w+\] Retry timeout|wait for \w+ \w+ timeout|wait for flush timeout"
    r"|collection .* create index .* timeout in"
)
# What a server says where it looks at the deadline first.
_DEADLINE_OF_SERVER = re.compile("context (?:Done|deadline exceeded)$")
# What gRPC says of a certificate.
_NOT_TRUSTED = re.compile("CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed")
_LARGER_THAN_A_MESSAGE = "message larger than max"
# The same, and what Milvus says of a result (quotaAndLimits.limits.maxOutputSize, 100 MiB).
_TOO_LARGE = re.compile(f"{_LARGER_THAN_A_MESSAGE}|exceeds? the maxOutputSize")
# What Milvus Lite says of a collection whose folder it has and whose schema it has not yet.
_BEING_CREATED = "[Errno 17] File exists"
# What pymilvus itself says has one of these codes.
_OF_PYMILVUS = (0, 1)
_RATE_LIMIT_CODES = (8, 49)
_PERMISSION_CODES = (1401, 2001)
_GRPC_ERRORS: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
    grpc.StatusCode.CANCELLED: UnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeoutError,
}
# Of gRPC's statuses, those that leave open what a server has done.
_NO_ANSWERS = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
_TRANSLATED = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, asyncio.TimeoutError)
# What gRPC says where a proxy has given up a request.
_GIVEN_UP = "RST_STREAM"


def check(status: Any) -> None:
    """Check the `Status` of a response.

    Raises:
        MilvusException: It is not that of a success. Servers before 2.3 have no `code`.
    """
    if code := status.code or status.error_code:
        raise MilvusException(code, status.reason, status.error_code)


@contextmanager
def translated(operation: str, address: Address) -> Iterator[None]:
    """Raise this package's exceptions in place of pymilvus' and gRPC's; see `translate`.

    pymilvus does not log them beside.
    """
    with expected_failures() as records:
        try:
            yield
        except Exception as error:
            # Of a file that it cannot open, Milvus Lite tells the reason to its log only.
            reasons = [one.exc_info[1] for one in records if one.exc_info and one.exc_info[1]]
            failure = translate(operation, error, address, reasons=reasons)
            if failure is error:
                raise
            raise failure from failure.__cause__


def translate(
    operation: str,
    error: Exception,
    address: Address,
    *,
    recovered: bool = False,
    reasons: Sequence[BaseException] = (),
) -> Exception:
    """Make one of this package's exceptions of what pymilvus or gRPC has raised.

    Args:
        operation: What was asked of Milvus, for the message.
        error: What was raised.
        address: Where, for the message, and whose secrets to keep out of it.
        recovered: Whether pymilvus has found another address to go on with.
        reasons: What was logged with the error.

    Returns:
        The exception, caused by the original one, except where that shows a secret; the original
        itself where it is neither pymilvus' nor gRPC's.
    """
    failure: Exception
    if isinstance(error, MilvusVectorStoreError):
        return error
    if isinstance(error, ConnectionConfigException):
        failure = _configuration_error(error, address, reasons)
        failure.__cause__ = error
    elif isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
        failure = ConfigurationError(
            f"{error.filename!r} cannot be read ({error.strerror}); certificates and keys are files"
        )
        failure.__cause__ = error
    elif isinstance(error, _TRANSLATED):
        failure = _server_error(operation, error, address)
        if recovered and isinstance(error, MilvusException):
            # A standby has refused what only the primary may do.
            failure = UnreachableError(operation, failure.message, failure.code)
            failure.nothing_done = True
        failure.__cause__ = None if _shows_secret(error, address) else error
    else:
        return error
    return failure


def is_refusal_of_data(error: Exception) -> bool:
    """Whether Milvus, or pymilvus before sending, refused what a request carries.

    Such a request has certainly done nothing: a server checks its parameters before anything
    else (codes 1100 to 1199, `merr.ErrParameterInvalid` and its kin).
    """
    if not isinstance(error, ServerError):
        return False
    packing = isinstance(error.__cause__, (ParamError, DataNotMatchException))
    return packing or error.code in range(1100, 1200) or is_too_large(error)


def is_too_large(error: Exception) -> bool:
    """Whether a message was larger than gRPC sends or takes, here or on the server."""
    return isinstance(error, ServerError) and bool(_TOO_LARGE.search(error.message))


def is_overload(error: Exception) -> bool:
    """Whether a server did nothing because it has too much to do (`merr.ErrServiceRateLimit`)."""
    if not isinstance(error, ServerError):
        return False
    cause = error.__cause__
    exhausted = (
        isinstance(cause, grpc.RpcError)
        and hasattr(cause, "code")
        and cause.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        and not is_too_large(error)
    )
    return exhausted or error.code in _RATE_LIMIT_CODES


def is_being_created(error: Exception) -> bool:
    """Whether Milvus Lite refused to create a collection that another process is creating."""
    return (
        isinstance(error, ServerError)
        and error.operation == "create_collection"
        and _BEING_CREATED in error.message
    )


def is_unknown_request(error: ServerError) -> bool:
    """Whether the server has no such request at all: its program was built without it."""
    cause = error.__cause__
    return (
        isinstance(cause, grpc.RpcError)
        and hasattr(cause, "code")
        and cause.code() is grpc.StatusCode.UNIMPLEMENTED
    )


def _configuration_error(
    error: ConnectionConfigException, address: Address, reasons: Sequence[BaseException]
) -> MilvusVectorStoreError:
    message = _redact(str(error.message), address)
    if address.is_lite:
        why = why_lite_cannot_open(address.uri, reasons)
        return LiteFileError("connect", f"Milvus Lite cannot open {address.uri!r}: {why}")
    return ConfigurationError(
        f"uri={address.uri!r}: {message}. Pass a server's address such as "
        '"http://localhost:19530", or a path that ends in ".db" for Milvus Lite'
    )


def _server_error(operation: str, error: BaseException, address: Address) -> ServerError:
    """Build the exception for what a client raised."""
    code, status, message = _details(error)
    message = _redact(message, address)
    nothing_done = isinstance(error, NotSentError) or operation in READS
    if isinstance(error, asyncio.TimeoutError) and isinstance(error.__cause__, ServerError):
        nothing_done = nothing_done and error.__cause__.nothing_done
        if isinstance(error.__cause__, UnreachableError):
            # The deadline passed between attempts; the last one says why there was no answer.
            lost = UnreachableError(operation, error.__cause__.message)
            lost.nothing_done = nothing_done
            return lost
    kind = _GRPC_ERRORS.get(status) if status is not None else None
    if status is grpc.StatusCode.INTERNAL and _GIVEN_UP in message:
        kind = UnreachableError
    if kind is None and code in _PERMISSION_CODES:
        kind = PermissionDeniedError
    if kind is None and (
        isinstance(error, (asyncio.TimeoutError, grpc.FutureTimeoutError))
        or (code in _OF_PYMILVUS and _WAITED_TOO_LONG.match(message))
        or _DEADLINE_OF_SERVER.search(message)
    ):
        kind = RequestTimeoutError
    if kind is None and code == _CONNECT_FAILED and "Fail connecting" in message:
        kind = UnreachableError
    if kind is UnreachableError and _NOT_TRUSTED.search(message):
        kind = CertificateError
    if kind is PermissionDeniedError:
        message = f"{address.uri}: the user may not do this ({message})"
    elif kind is AuthenticationError:
        message = f"{address.uri}: the token or password was not accepted ({message})"
    elif kind is CertificateError:
        message = (
            f"{address.uri}: the server's certificate is not trusted ({message}). Pass that of the "
            "authority that signed it, as server_pem_path or, with a certificate of the client, as "
            "ca_pem_path; where it names another server, pass that name as server_name"
        )
    elif kind is UnreachableError:
        cause = cause_of_no_connection(address, message)
        message = f"no connection to {address.uri}{cause and ': ' + cause} ({message})"
    elif kind is RequestTimeoutError:
        message = f"no answer from {address.uri} in time ({message})"
    elif _LARGER_THAN_A_MESSAGE in message:
        message += (
            ". Ask for fewer hits (similarity_top_k) or fields (output_fields), or pass less in "
            "one filter"
        )
    elif kind is None and (cause := cause_of_refusal(address, code, message)):
        message = f"{cause} ({message})"
    failure = (kind or ServerError)(operation, message, code)
    if status in _NO_ANSWERS:
        failure.is_answer = False
    failure.nothing_done = (
        nothing_done
        or kind is CertificateError
        or (kind is UnreachableError and _not_connected(code, message))
        or status is grpc.StatusCode.RESOURCE_EXHAUSTED
        or code in _RATE_LIMIT_CODES
    )
    return failure


def _not_connected(code: int, message: str) -> bool:
    """Whether the connection that a request needed could not be made, rather than was lost."""
    return code == _CONNECT_FAILED or "failed to connect" in message


def _details(error: BaseException) -> tuple[int, grpc.StatusCode | None, str]:
    """Milvus' code, gRPC's status and the text of an error.

    pymilvus re-raises with the exception as its own cause, so that chains can be cycles, and
    puts an int, an `ErrorCode` or a `grpc.StatusCode` in `code`; where a connection fails, the
    reason is only in the cause.
    """
    code, status, texts = 0, None, list[str]()
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is one for one in seen):
        seen.append(current)
        if isinstance(current, MilvusException):
            value: Any = current.code
            if isinstance(value, grpc.StatusCode):
                status = status or value
            else:
                code = code or int(value)
            texts.append(str(current.message))
        elif isinstance(current, grpc.RpcError) and hasattr(current, "code"):
            status = status or current.code()
            texts.append(str(current.details()))
        elif isinstance(current, (asyncio.TimeoutError, grpc.FutureTimeoutError)):
            texts.append("timed out")
        current = current.__cause__
    return code, status, ": ".join(dict.fromkeys(filter(None, texts))) or str(error)


def _shows_secret(error: BaseException, address: Address) -> bool:
    """Whether the text of an error, or of one that it is chained to, has a secret in it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or any(current is one for one in seen):
            continue
        seen.append(current)
        waiting += [current.__cause__, current.__context__]
    texts = " ".join(f"{one} {one!r}" for one in seen)
    return any(secret in texts for secret in address.secrets)


def _redact(text: str, address: Address) -> str:
    for secret in address.secrets:
        text = text.replace(secret, "***")
    return text
