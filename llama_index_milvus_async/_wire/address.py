"""Where Milvus is, and how it is connected to."""

from __future__ import annotations

import base64
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from pymilvus import MilvusClient

#: Arguments of both pymilvus clients beside `uri`, `token` and `timeout`: those of their signature,
#: and those that their `**kwargs` hand on to the connection (https://milvus.io/docs/tls.md,
#: `pymilvus.connections.connect`). Four have no effect here, because connections are dedicated to
#: stores and kept alive in any case: `alias`, `cluster_id`, `dedicated` and `keep_alive`.
CLIENT_OPTIONS = frozenset(inspect.signature(MilvusClient.__init__).parameters) - {
    "kwargs",
    "self",
    "timeout",
    "token",
    "uri",
} | {
    "alias",
    "ca_pem_path",
    "client_key_path",
    "client_pem_path",
    "cluster_id",
    "dedicated",
    "grpc_options",
    "keep_alive",
    "option",
    "secure",
    "server_name",
    "server_pem_path",
}

#: Seconds to wait for a connection, pymilvus' own default.
CONNECT_TIMEOUT = 10.0

# Names of this machine for itself, which are one place.
_LOCALHOST, _LOOPBACK = "localhost", "127.0.0.1"
# The ports that pymilvus takes where a URI names none.
_PORT, _HTTPS_PORT = 19530, 443
# Milvus' name of the database that requests without a name go to.
_DEFAULT_DATABASE = "default"

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
class ConnectionKey:
    """What two stores must have in common to use one connection; it holds their secrets."""

    place: str
    login: tuple[str, ...] = field(repr=False)
    options: str = field(repr=False)


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

    @cached_property
    def place(self) -> str:
        """What is the same for every spelling of an engine's address.

        The host is in lower case, the default port is written out, `localhost` is 127.0.0.1, and
        the scheme means nothing to the engine; of a file it is the path without links.
        """
        if self.is_lite:
            return os.path.realpath(self.uri)
        host, colon, port = self.endpoint.rpartition(":")
        return f"{_LOOPBACK if host == _LOCALHOST else host}{colon}{port}"

    @property
    def endpoint(self) -> str:
        """Host and port, as pymilvus has them."""
        parts = urlsplit(self.uri)
        if not parts.hostname:
            return self.uri
        port = parts.port or (_HTTPS_PORT if parts.scheme == "https" else _PORT)
        return f"{parts.hostname}:{port}"

    @property
    def database(self) -> str:
        """The database, empty for the default one; pymilvus reads it from a URI's path as well."""
        name = str(self.options.get("db_name") or "")
        if not name and "://" in self.uri:
            name = urlsplit(self.uri).path.strip("/").partition("/")[0]
        return "" if name == _DEFAULT_DATABASE else name

    @cached_property
    def connection_key(self) -> ConnectionKey:
        """What two stores must have in common to use one connection.

        The host is as it was written: certificates tell `localhost` from 127.0.0.1.
        """
        options = {**self.options, "db_name": self.database}
        login = (self.token, str(options.pop("user", "") or ""), self.password)
        where = self.place if self.is_lite else self.endpoint
        options["secure"] = self.uri.startswith("https") or bool(options.get("secure"))
        return ConnectionKey(where, login, repr(sorted(options.items())))

    @property
    def is_global_cluster(self) -> bool:
        """Whether the URI names a cluster of Zilliz Cloud whose primary may change."""
        return "global-cluster" in self.uri.lower()

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


def connect_timeout(timeout: float | None) -> float:
    """Seconds to wait for a connection where requests may take `timeout`."""
    return CONNECT_TIMEOUT if timeout is None else min(timeout, CONNECT_TIMEOUT)
