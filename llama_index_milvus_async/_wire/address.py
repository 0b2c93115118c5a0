"""Where Milvus is, and how it is connected to."""

from __future__ import annotations

import atexit
import base64
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import LiteNotInstalledError

#: Seconds to wait for a connection, pymilvus' own default.
CONNECT_TIMEOUT = 10.0

# Otherwise gRPC lets all channels of a process to one address share a connection: where the
# server ends that of an idle client, the first call of a new one fails with it.
_GRPC_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    # A server that comes back is found within 0.6 seconds, not 2 minutes; one attempt to connect
    # takes 5 seconds at most, not 20.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
    "grpc.min_reconnect_backoff_ms": 5_000,
}

# Idle connections to Lite are cut ("too_many_pings") with pymilvus' pings every 10 s.
_LITE_GRPC_OPTIONS = {"grpc.keepalive_time_ms": 300_000}


@dataclass(frozen=True)
class Address:
    """Where Milvus is and how to log in; secrets are kept out of `repr`."""

    uri: str
    token: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_lite(self) -> bool:
        """Whether pymilvus starts Milvus Lite in this process for the URI."""
        return self.uri.endswith(".db")

    @property
    def place(self) -> str:
        """What is the same for every address of one engine, as far as it shows."""
        return os.path.abspath(self.uri) if self.is_lite else self.uri

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must not be shown: token, password, and the header made of them."""
        _, _, token_password = self.token.partition(":")
        login = self.password and f"{self.options.get('user', '')}:{self.password}"
        plain = (self.token, login)
        encoded = [base64.b64encode(text.encode()).decode() for text in plain]
        return tuple(filter(None, (self.token, token_password, self.password, *encoded)))

    def client_arguments(self, timeout: float | None) -> dict[str, Any]:
        """Arguments of both pymilvus clients.

        `dedicated`, because shared channels ignore the TLS and gRPC options of all but their
        first user and are never closed.
        """
        arguments = dict(self.options)
        ours = {**_GRPC_OPTIONS, **(_LITE_GRPC_OPTIONS if self.is_lite else {})}
        arguments["grpc_options"] = {**ours, **(arguments.get("grpc_options") or {})}
        return {
            **arguments,
            "uri": self.uri,
            "token": self.token,
            "password": self.password,
            "timeout": connect_timeout(timeout),
            "dedicated": True,
        }


def check_lite_installed(address: Address) -> None:
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


def leave_lite_to_parent() -> None:
    """In a forked child: have the files that the parent has open left alone when the child ends.

    Milvus Lite would close them, and give up the parent's locks.
    """
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


def connect_timeout(timeout: float | None) -> float:
    """Seconds to wait for a connection where requests may take `timeout`."""
    return CONNECT_TIMEOUT if timeout is None else min(timeout, CONNECT_TIMEOUT)
