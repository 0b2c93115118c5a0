"""Encrypted connections and users with few rights, on servers that check both.

Two servers of this module's own: one that shows a certificate, and one that wants the client's as
well. Both check tokens and privileges. What goes wrong has an error of its own, in time, and
nothing that is told of it, by whomever to whomever, shows a secret.
"""

import asyncio
import base64
import contextlib
import datetime
import itertools
import logging
import pickle
import shutil
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.vector_stores.types import VectorStoreQuery
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pymilvus import MilvusClient, MilvusException

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    AuthenticationError,
    CertificateError,
    MilvusVectorStoreError,
    PermissionDeniedError,
    RequestTimeoutError,
    UnreachableError,
)
from tests import MILVUS_URI
from tests.fixtures import servers
from tests.fixtures.recorder import recording
from tests.fixtures.servers import StandaloneServer, free_port
from tests.fixtures.stores import DIM, Coloured, collection_name, make_nodes
from tests.fixtures.waiting import eventually, in_time

pytestmark = pytest.mark.starts

TIMEOUT = 5.0
#: Room for a busy machine; pymilvus' own patience would be 10 s to connect and more to retry.
IN_TIME = 2 * TIMEOUT
#: Seconds after which a proxy has heard of a change, on any machine.
PATIENCE = 60.0
#: Seconds of an operation that cannot connect, all of which it may use up. Where they were too few
#: for a reason to be told, on a busy machine, more are tried.
SHORT = (0.5, 2.0, TIMEOUT)
#: Seconds between two looks whether a proxy has heard of a change.
POLL = 0.02

ROOT = "root:Milvus"
USER = "keeper"
PASSWORD = "Tr0ub4dor+&3@/x%"
TOKEN = f"{USER}:{PASSWORD}"
WRONG_PASSWORD = "0ld-Tr0ub4dor+&3@"
COLLECTION = "guarded"

#: What a role needs, as docs/operations.md says. Milvus 2.3.5 wants "Load" of whoever asks for the
#: state of a collection, in the place of "GetLoadState".
TO_CONNECT = ["DescribeCollection", "IndexDetail", "Load"]
TO_READ = ["Search", "Query"]
TO_ADD = ["Insert", "Upsert", "Flush", "GetFlushState"]
TO_DELETE = ["Delete"]
TO_CREATE = ["CreateCollection", "CreateIndex"]
#: Those that are not granted on a collection but on everything.
GLOBAL = {"DescribeCollection", "CreateCollection", "DropCollection"}
#: The user of the tests may do all but drop a collection; each test takes something away.
PRIVILEGES = [*TO_CONNECT, *TO_READ, *TO_ADD, *TO_DELETE, *TO_CREATE]
#: What Milvus grants to every user, by the role "public"; here nobody has it without a role.
EVERYBODY = [
    ("Collection", "IndexDetail"),
    ("Global", "DescribeCollection"),
    ("Global", "ShowCollections"),
]


# The servers


class Certificates:
    """Files with certificates of two authorities; the server's is of the first."""

    def __init__(self, directory):
        self._directory = directory
        authority, stranger = trustme.CA(), trustme.CA()
        self.authority = self._file("authority.pem", authority.cert_pem)
        self.stranger = self._file("stranger.pem", stranger.cert_pem)
        self.server = self._pair("server", authority.issue_cert("localhost"))
        self.client = self._pair("client", authority.issue_cert("client.test"))
        self.forged = self._pair("forged", stranger.issue_cert("client.test"))
        begin, end = (datetime.datetime(year, 1, 1) for year in (2020, 2021))
        expired = authority.issue_cert("client.test", not_before=begin, not_after=end)
        self.expired = self._pair("expired", expired)
        self.key_of_client = Path(self.client[1]).read_text().splitlines()[1]

    def _pair(self, name, certificate):
        chain, key = certificate.cert_chain_pems[0], certificate.private_key_pem
        return self._file(f"{name}.pem", chain), self._file(f"{name}.key", key)

    def _file(self, name, blob):
        path = str(self._directory / name)
        blob.write_to_path(path)
        return path


def identity(pair):
    """The arguments that show a client's certificate."""
    return dict(zip(("client_pem_path", "client_key_path"), pair, strict=True))


class SecureServer(StandaloneServer):
    """Milvus standalone that encrypts, and checks tokens and privileges.

    Attributes:
        trust: The arguments of a client that this server and this client accept.
        root: A client that may do everything.
    """

    def __init__(self, directory, certificates, mutual):
        super().__init__(directory)
        self.certificates = certificates
        self.SETTINGS = {
            "common.security.authorizationEnabled": "true",
            "common.security.tlsMode": 2 if mutual else 1,
            "tls.serverPemPath": certificates.server[0],
            "tls.serverKeyPath": certificates.server[1],
            "tls.caPemPath": certificates.authority,
        }
        authority = "ca_pem_path" if mutual else "server_pem_path"
        self.trust = {"secure": True, authority: certificates.authority}
        if mutual:
            self.trust |= identity(certificates.client)

    @property
    def uri(self):
        return f"https://localhost:{self.port}"

    def client(self):
        return MilvusClient(self.uri, token=ROOT, timeout=2, dedicated=True, **self.trust)

    def answers(self):
        try:
            client = self.client()
            client.list_collections(timeout=2)
        except MilvusException:
            return False
        client.close()
        return True

    def start(self):
        """Starts the server, with a user who may do much to one collection, which is there."""
        super().start()
        self.root = self.client()
        for kind, privilege in EVERYBODY:
            self.root.revoke_privilege("public", kind, privilege, "*", db_name="*")
        self.root.create_user(USER, PASSWORD)
        self.root.create_role("role")
        self.root.grant_role(USER, "role")
        for privilege in PRIVILEGES:
            self.grant("role", privilege)
        with self.store(token=ROOT) as store:
            store.add(make_nodes(4))

    def grant(self, role, privilege, name=COLLECTION):
        self.root.grant_privilege(role, *_object(privilege, name))

    def revoke(self, role, privilege, name=COLLECTION):
        self.root.revoke_privilege(role, *_object(privilege, name))

    def store(self, **kwargs):
        arguments = {
            **{"uri": self.uri, "token": TOKEN, "collection_name": COLLECTION, "dim": DIM},
            **{"timeout": TIMEOUT, "consistency_level": "Strong", **self.trust},
        }
        arguments.update(kwargs)
        return MilvusVectorStore(**{k: v for k, v in arguments.items() if v is not None})

    @contextlib.contextmanager
    def visitor(self, *privileges):
        """A user with these privileges alone; yields the token."""
        self.root.create_user("visitor", PASSWORD)
        self.root.create_role("visitors")
        self.root.grant_role("visitor", "visitors")
        for privilege in privileges:
            self.grant("visitors", privilege)
        try:
            yield f"visitor:{PASSWORD}"
        finally:
            self.root.drop_user("visitor")
            for privilege in privileges:
                self.revoke("visitors", privilege)
            self.root.drop_role("visitors")

    @contextlib.contextmanager
    def without(self, *privileges):
        """Takes privileges away from the role of the tests; yields what gives them back."""
        assert set(privileges) <= set(PRIVILEGES)
        taken = list(privileges)
        for privilege in privileges:
            self.revoke("role", privilege)

        def give_back():
            while taken:
                self.grant("role", taken.pop())

        try:
            yield give_back
        finally:
            give_back()


def _object(privilege, name):
    """The kind and the name of the object that a privilege is about, as Milvus asks for them."""
    return ("Global", privilege, "*") if privilege in GLOBAL else ("Collection", privilege, name)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(tmp_path_factory, certificates):
    """Both servers by name, started side by side."""
    if MILVUS_URI:
        pytest.skip("MILVUS_URI names a server whose certificates and users are not ours")
    if reason := StandaloneServer.why_not():
        pytest.skip(reason)
    made = {
        name: SecureServer(tmp_path_factory.mktemp(name) / "server", certificates, mutual)
        for name, mutual in {"standalone-tls": False, "standalone-mutual": True}.items()
    }

    def answers(uri):
        # A server whose port was taken by somebody else has another one by now.
        return any(server.answers() for server in made.values() if server.uri == uri)

    try:
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
            patch.setattr(servers, "answers", answers)
            list(pool.map(SecureServer.start, made.values()))
        yield made
    finally:
        for server in made.values():
            server.remove()


@pytest.fixture(params=["standalone-tls", "standalone-mutual"])
def server(request, secured):
    return secured[request.param]


@pytest.fixture(params=["standalone-tls"])
def tls(request, secured):
    return secured[request.param]


@pytest.fixture(params=["standalone-mutual"])
def mutual(request, secured):
    return secured[request.param]


# What is shown


class Events(BaseEventHandler):
    """Keeps events, as texts."""

    kept: list[str]

    def handle(self, event, **kwargs):
        self.kept.append(f"{event!r} {event.__dict__} {kwargs}")


class Spans(BaseSpanHandler[BaseSpan]):
    """Keeps what it is told of spans, as texts."""

    kept: list[str] = []  # noqa: RUF012 (pydantic copies it)

    def new_span(self, id_, bound_args, **kwargs):
        self.kept.append(f"{id_} {bound_args} {kwargs}")
        return BaseSpan(id_=id_)

    def prepare_to_exit_span(self, id_, bound_args, **kwargs):
        self.kept.append(f"{id_} {bound_args} {kwargs}")
        return self.open_spans[id_]

    prepare_to_drop_span = prepare_to_exit_span


#: They pass nothing on to the root logger.
LOGGERS_OF_PYMILVUS = ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer")


class Witness:
    """Everything that was told while a test ran: events, spans, traces, metrics, logs, output."""

    def __init__(self, monkeypatch, caplog, capfd):
        self._caplog, self._capfd = caplog, capfd
        self._events, self._spans = Events(kept=[]), Spans()
        root = get_dispatcher()
        monkeypatch.setattr(root, "event_handlers", [*root.event_handlers, self._events])
        monkeypatch.setattr(root, "span_handlers", [*root.span_handlers, self._spans])
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers, meters = TracerProvider(), MeterProvider([self._reader])
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
        monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
        monkeypatch.setattr(metrics, "get_meter", meters.get_meter)

    def told(self):
        """What was told, by the way that it took."""
        data = self._reader.get_metrics_data()
        return {
            "events": self._events.kept,
            "spans": self._spans.kept,
            "traces": [span.to_json() for span in self._exporter.get_finished_spans()],
            "metrics": [] if data is None else [data.to_json()],
            "logs": list(map(logging.Formatter().format, self._caplog.records)),
            # A handler may look into a record further than its text.
            "records": [str(vars(record)) for record in self._caplog.records],
            "output": list(self._capfd.readouterr()),
        }

    def assert_hides(self, *secrets, error=None):
        """Nothing that was told, nor an error, shows a secret in any form."""
        shown = {
            *secrets,
            *(quote(secret, safe="") for secret in secrets),
            *(base64.b64encode(text.encode()).decode() for text in secrets),
            *(base64.b64encode(f"{USER}:{text}".encode()).decode() for text in secrets),
        }
        texts = [*itertools.chain(*self.told().values()), *texts_of(error)]
        assert not [secret for secret in shown for text in texts if secret in text]
        if error is not None:
            carried = pickle.dumps(error)
            assert not [secret for secret in shown if secret.encode() in carried]
            again = pickle.loads(carried)
            assert (type(again), str(again)) == (type(error), str(error))


def texts_of(error):
    """An exception as a handler, a log or a debugger would show it, with all it is chained to."""
    if error is not None:
        yield "".join(traceback.format_exception(error))
    seen, waiting = [], [error]
    while waiting:
        current = waiting.pop()
        if current is None or any(current is one for one in seen):
            continue
        seen.append(current)
        yield f"{current} {current!r} {current.args} {vars(current)}"
        waiting += [current.__cause__, current.__context__]


@pytest.fixture
def witness(monkeypatch, caplog, capfd):
    with contextlib.ExitStack() as stack:
        stack.enter_context(caplog.at_level(logging.DEBUG))
        for name in LOGGERS_OF_PYMILVUS:
            logger = logging.getLogger(name)
            stack.enter_context(caplog.at_level(logging.DEBUG, name))
            logger.addHandler(caplog.handler)
            stack.callback(logger.removeHandler, caplog.handler)
        yield Witness(monkeypatch, caplog, capfd)


async def failing(operation, store, kind):
    """Runs an operation that fails in time; returns its error."""

    async def fail():
        with pytest.raises(kind) as caught:
            await operation(store)
        return caught.value

    error = await in_time(fail, IN_TIME)
    assert isinstance(error, MilvusVectorStoreError)
    return error


async def refused(operation, store, kind=PermissionDeniedError):
    """Runs an operation that was just forbidden, until a proxy has heard of that and refuses it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            await operation(store)
        except AuthenticationError as error:
            assert type(error) is kind
            return error
        await asyncio.sleep(POLL)
    pytest.fail("it was never refused")


async def succeeding(operation, store):
    """Runs an operation that was just allowed until a proxy has heard of that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await operation(store)
        except AuthenticationError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(POLL)


def query(**kwargs):
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=4, **kwargs)


NUMBERS = itertools.count()

#: Every operation, as a function of a `Coloured` store.
OPERATIONS = {
    "connect": lambda store: store.connect(),
    # Of another id each time: of rows with one id, only one is found, and hits come short.
    "add": lambda store: store.add(make_nodes(1, prefix=f"more-{next(NUMBERS)}")),
    "query": lambda store: store.query(query()),
    "query_many": lambda store: store.query_many([query(), query()]),
    "get_nodes": lambda store: store.get_nodes(["node-0"]),
    "delete": lambda store: store.delete("no such document"),
    "delete_nodes": lambda store: store.delete_nodes(["more-0"]),
    "clear": lambda store: store.clear(),
}


#: Somebody who tells a secret.
TELLERS = {
    "event": lambda: get_dispatcher("any").event(ExceptionEvent(exception=OSError(PASSWORD))),
    "span": lambda: get_dispatcher("any").span_enter(f"span of {PASSWORD}", None),
    "trace": lambda: trace.get_tracer("any").start_span(quote(PASSWORD, safe="")).end(),
    "metric": lambda: metrics.get_meter("any").create_counter("count").add(1, {"user": TOKEN}),
    "log": lambda: logging.getLogger("any").debug("login of %s", TOKEN),
    "log of pymilvus": lambda: logging.getLogger("pymilvus.any").debug(TOKEN),
    "record": lambda: logging.getLogger("any").debug("login", extra={"token": TOKEN}),
    "output": lambda: print(base64.b64encode(TOKEN.encode()).decode()),
    "error": lambda: UnreachableError("query", f"no connection for {TOKEN}"),
}


@pytest.mark.parametrize("teller", TELLERS)
async def test_the_witness_hears_whoever_tells_a_secret(tls, witness, teller):
    """Otherwise the tests below could not fail."""
    async with tls.store() as store:
        await store.aquery(query())
    told = witness.told()
    for way in ("events", "spans", "traces", "metrics"):
        assert COLLECTION in str(told[way])
    witness.assert_hides(PASSWORD)
    error = TELLERS[teller]()
    with pytest.raises(AssertionError, match=r"Tr0ub4dor|a2VlcGVy"):
        witness.assert_hides(PASSWORD, error=error)


# Connections that work


async def test_every_operation_over_an_encrypted_connection(server, coloured, witness):
    store = coloured(server.store())
    await store.connect()
    nodes = make_nodes(6, prefix="new")
    assert await store.add(nodes) == [node.node_id for node in nodes]
    found = await store.query(VectorStoreQuery(query_embedding=nodes[5].embedding))
    assert found.ids == ["new-5"]
    [first, _] = await store.query_many([query(), query()])
    assert len(first.ids) == 4
    await store.delete("doc-1")  # new-4 and new-5
    assert [n.node_id for n in await store.get_nodes(["new-3", "new-4"])] == ["new-3"]
    await store.delete_nodes([f"new-{i}" for i in range(4)])
    assert await store.get_nodes(["new-3"]) == []
    await store.close()
    witness.assert_hides(PASSWORD, server.certificates.key_of_client)


async def test_an_address_with_https_needs_no_further_flag(tls, coloured):
    store = coloured(tls.store(secure=None))
    assert len(await store.get_nodes(["node-0", "node-1"])) == 2
    await store.close()


async def test_the_name_in_the_certificate_may_be_another(tls, coloured):
    uri = tls.uri.replace("localhost", "127.0.0.1")
    store = coloured(tls.store(uri=uri, server_name="localhost"))
    assert len(await store.get_nodes(["node-0", "node-1"])) == 2
    await store.close()
    store = coloured(tls.store(uri=uri, timeout=SHORT[0]))
    await failing(OPERATIONS["get_nodes"], store, UnreachableError)
    await store.close()


async def test_a_pickled_store_connects_as_the_first_one_did(server, coloured, witness):
    bare = pickle.loads(pickle.dumps(server.store()))
    store = coloured(bare)
    assert len(await store.get_nodes(["node-0", "node-1"])) == 2
    await store.close()
    witness.assert_hides(PASSWORD)
    for form in (repr(bare), str(bare), bare.to_json(), str(bare.to_dict()), str(bare.stats())):
        assert PASSWORD not in form


# Connections that do not

#: Name to the arguments that differ from those that work, and what the error says.
TLS = {
    "wrong-authority": (lambda c: {"server_pem_path": c.stranger}, "CERTIFICATE_VERIFY_FAILED"),
    "public-authorities": (lambda c: {"server_pem_path": None}, "CERTIFICATE_VERIFY_FAILED"),
    "other-name": (lambda c: {"server_name": "elsewhere.test"}, "Hostname Verification"),
}
MUTUAL = {
    "wrong-authority": (lambda c: {"ca_pem_path": c.stranger}, "CERTIFICATE_VERIFY_FAILED"),
    "no-client-certificate": (
        lambda c: {
            **dict.fromkeys(("ca_pem_path", "client_pem_path", "client_key_path")),
            "server_pem_path": c.authority,
        },
        "no connection",
    ),
    "forged-client-certificate": (lambda c: identity(c.forged), "no connection"),
    "expired-client-certificate": (lambda c: identity(c.expired), "no connection"),
}


async def unreachable(open_store, told, operation="query"):
    """Runs an operation of a store that cannot connect for a reason; returns its error."""
    for timeout in SHORT:
        store = open_store(timeout)
        error = await failing(OPERATIONS[operation], store, UnreachableError)
        await store.close()
        assert isinstance(error, (MilvusException, ConnectionError))
        if told in str(error):
            return error
    pytest.fail(f"{told!r} was not told, but: {error}")


@pytest.mark.parametrize("operation", ["connect", "add", "get_nodes"])
async def test_a_wrong_authority_fails_every_operation(tls, coloured, operation):
    wrong = {"server_pem_path": tls.certificates.stranger}
    error = await unreachable(
        lambda timeout: coloured(tls.store(**wrong, timeout=timeout)),
        "CERTIFICATE_VERIFY_FAILED",
        operation,
    )
    assert tls.uri in str(error)


@pytest.mark.parametrize("case", TLS)
async def test_a_server_that_is_not_trusted(tls, coloured, witness, case):
    differs, told = TLS[case]
    wrong = differs(tls.certificates)
    error = await unreachable(lambda timeout: coloured(tls.store(**wrong, timeout=timeout)), told)
    assert tls.uri in str(error)
    witness.assert_hides(PASSWORD, error=error)


@pytest.mark.parametrize("case", MUTUAL)
async def test_a_server_or_client_that_is_not_trusted(mutual, coloured, witness, case):
    differs, told = MUTUAL[case]
    wrong = differs(mutual.certificates)
    error = await unreachable(
        lambda timeout: coloured(mutual.store(**wrong, timeout=timeout)), told
    )
    assert mutual.uri in str(error)
    witness.assert_hides(PASSWORD, mutual.certificates.key_of_client, error=error)


@pytest.mark.parametrize("case", TLS)
async def test_a_certificate_that_is_not_trusted_is_not_waited_for(tls, coloured, case):
    """It does not become another one within a minute, which is the default."""
    differs, told = TLS[case]
    store = coloured(tls.store(**differs(tls.certificates), timeout=60))
    for operation in ("connect", "add", "query"):
        error = await failing(OPERATIONS[operation], store, CertificateError)
        assert told in str(error)
        assert "server_pem_path" in str(error)
        assert "server_name" in str(error)
    await store.close()


async def test_a_plain_client_on_an_encrypted_port(server, coloured, witness):
    wrong = {**dict.fromkeys(server.trust), "uri": server.uri.replace("https", "http")}
    told = f"no connection to {wrong['uri']}"
    error = await unreachable(
        lambda timeout: coloured(server.store(**wrong, timeout=timeout)), told
    )
    witness.assert_hides(PASSWORD, error=error)


def elsewhere(uri, certificates, timeout):
    """A store of a server that is none of this module's."""
    trust = {"secure": True, "server_pem_path": certificates.authority}
    return MilvusVectorStore(uri=uri, token=TOKEN, dim=DIM, timeout=timeout, **trust)


async def test_an_encrypting_client_on_a_plain_port(coloured, witness, certificates):
    with recording("http://127.0.0.1:1") as recorder:  # a gRPC server; it passes nothing on
        uri = recorder.uri.replace("http://127.0.0.1", "https://localhost")
        error = await unreachable(
            lambda timeout: coloured(elsewhere(uri, certificates, timeout)),
            f"no connection to {uri}",
        )
        assert recorder.calls == []
    witness.assert_hides(PASSWORD, error=error)


async def test_nobody_there_to_encrypt(coloured, certificates, witness):
    uri = f"https://localhost:{free_port()}"
    error = await unreachable(
        lambda timeout: coloured(elsewhere(uri, certificates, timeout)), f"no connection to {uri}"
    )
    witness.assert_hides(PASSWORD, error=error)


@pytest.mark.parametrize("argument", ["server_pem_path", "ca_pem_path", "client_key_path"])
async def test_a_missing_file_is_an_error_of_this_package(certificates, argument):
    """It needs no server: the files are read before a connection is made."""
    trust = {"server_pem_path": certificates.authority}
    if argument != "server_pem_path":
        trust = {"ca_pem_path": certificates.authority, **identity(certificates.client)}
    trust[argument] = "no/such/file"
    uri = f"https://localhost:{free_port()}"
    store = MilvusVectorStore(uri=uri, dim=DIM, secure=True, timeout=TIMEOUT, **trust)
    with pytest.raises(MilvusVectorStoreError, match="no/such/file"):
        await store.aconnect()


async def test_a_file_that_is_no_certificate(tls, coloured, tmp_path, witness):
    path = tmp_path / "nonsense.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    wrong = {"server_pem_path": str(path)}
    error = await unreachable(
        lambda timeout: coloured(tls.store(**wrong, timeout=timeout)), "no connection"
    )
    witness.assert_hides(PASSWORD, error=error)


async def test_a_renewed_certificate_is_read_at_the_next_attempt(tls, coloured, tmp_path):
    path = tmp_path / "authority.pem"
    shutil.copyfile(tls.certificates.stranger, path)
    store = coloured(tls.store(server_pem_path=str(path), timeout=SHORT[0]))
    await failing(OPERATIONS["query"], store, UnreachableError)
    shutil.copyfile(tls.certificates.authority, path)
    # The store connects within its own timeout, which a busy machine may exceed.
    result = await eventually(lambda: store.query(query(), timeout=TIMEOUT), RequestTimeoutError)
    assert len(result.ids) == 4
    await store.close()


# Who may connect

#: Name to arguments, and the secret that they have.
LOGINS = {
    "wrong-token": ({"token": f"{USER}:{WRONG_PASSWORD}"}, WRONG_PASSWORD),
    "wrong-password": (
        {"token": None, "user": USER, "password": WRONG_PASSWORD},
        WRONG_PASSWORD,
    ),
    "unknown-user": ({"token": f"nobody:{WRONG_PASSWORD}"}, WRONG_PASSWORD),
    "api-key": ({"token": "k3y-9f2b7c-unknown"}, "k3y-9f2b7c-unknown"),
    "nothing": ({"token": None}, PASSWORD),
}


@pytest.mark.parametrize("login", LOGINS)
async def test_a_wrong_login_fails_every_operation_and_is_not_shown(tls, coloured, witness, login):
    arguments, secret = LOGINS[login]
    store = coloured(tls.store(**arguments))
    for operation in OPERATIONS.values():
        error = await failing(operation, store, AuthenticationError)
        assert "token or password" in str(error) and tls.uri in str(error)
        witness.assert_hides(secret, error=error)
    await store.close()


async def test_a_wrong_login_in_the_address_is_not_shown(tls, coloured, witness):
    uri = tls.uri.replace("//", f"//{USER}:{quote(WRONG_PASSWORD, safe='')}@")
    store = coloured(tls.store(uri=uri, token=None))
    error = await failing(OPERATIONS["query"], store, AuthenticationError)
    witness.assert_hides(WRONG_PASSWORD, error=error)
    await store.close()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("connect", "clear")])
async def test_a_password_that_changes_under_a_store(tls, coloured, witness, name):
    """Clients of either colour are told, and connect again where the password is back."""
    tls.root.create_user("changing", PASSWORD)
    tls.root.grant_role("changing", "role")
    store = coloured(tls.store(token=f"changing:{PASSWORD}"))
    try:
        await store.connect()
        await OPERATIONS[name](store)
        tls.root.update_password("changing", PASSWORD, WRONG_PASSWORD)
        await refused(OPERATIONS[name], store, AuthenticationError)
        error = await failing(OPERATIONS[name], store, AuthenticationError)
        witness.assert_hides(PASSWORD, error=error)
        tls.root.update_password("changing", WRONG_PASSWORD, PASSWORD)
        await succeeding(OPERATIONS[name], store)
    finally:
        await store.close()
        tls.root.drop_user("changing")


# Who may do what

#: Operation to the privilege without which it fails, and to how it is called.
GUARDED = {
    "add": ("Upsert", {}, OPERATIONS["add"]),
    "insert": ("Insert", {"upsert_mode": False}, OPERATIONS["add"]),
    "query": ("Search", {}, OPERATIONS["query"]),
    "query_many": ("Search", {}, OPERATIONS["query_many"]),
    "mmr": ("Search", {}, lambda store: store.query(query(mode="mmr"))),
    "get_nodes": ("Query", {}, OPERATIONS["get_nodes"]),
    "delete": ("Delete", {}, OPERATIONS["delete"]),
    "delete_nodes": ("Delete", {}, OPERATIONS["delete_nodes"]),
    "clear": ("Delete", {}, OPERATIONS["clear"]),
    "delete_in_partition": (
        "Delete",
        {},
        lambda store: store.delete_nodes(["more-0"], milvus_partition_name="_default"),
    ),
    "connect": ("DescribeCollection", {}, OPERATIONS["connect"]),
    "index": ("IndexDetail", {}, OPERATIONS["connect"]),
    "load": ("Load", {}, OPERATIONS["connect"]),
}


@pytest.mark.parametrize("name", GUARDED)
async def test_a_missing_privilege_is_an_error_until_it_is_granted(tls, coloured, witness, name):
    privilege, arguments, operation = GUARDED[name]
    store = coloured(tls.store(**arguments))

    async def connect_anew(_):
        other = coloured(tls.store(**arguments))
        try:
            await other.connect()
        finally:
            await other.close()

    with tls.without(privilege) as give_back:
        if operation is OPERATIONS["connect"]:
            # A store that is ready asks for nothing more, so that one which connects before the
            # proxy has heard would never be refused.
            await refused(connect_anew, store)
        error = await refused(operation, store)
        witness.assert_hides(PASSWORD, error=error)
        assert privilege in str(error)
        # Nothing else is harmed: the next call is refused alike, and works when it may.
        await failing(operation, store, PermissionDeniedError)
        give_back()
        await succeeding(operation, store)
    if name == "clear":
        await succeeding(lambda store: store.add(make_nodes(4)), store)
    await store.close()


async def test_a_flush_that_is_not_allowed_is_an_error_after_the_rows_were_written(tls, coloured):
    store = coloured(tls.store())
    with tls.without("Flush"):
        error = await refused(
            lambda s: s.add(make_nodes(1, prefix="more"), force_flush=True), store
        )
        assert "Flush" in str(error)
    assert len(await store.get_nodes(["more-0"])) == 1
    await store.delete_nodes(["more-0"])
    await store.close()


async def test_what_is_not_allowed_deletes_and_writes_nothing(tls, coloured):
    store = coloured(tls.store())
    ids = [f"node-{i}" for i in range(4)]
    with tls.without("Delete", "Upsert"):
        await refused(OPERATIONS["delete"], store)
        await refused(OPERATIONS["add"], store)
        for operation in (
            lambda store: store.add(make_nodes(1, prefix="other")),
            lambda store: store.delete("doc-0"),
            lambda store: store.delete_nodes(ids),
            lambda store: store.clear(),
        ):
            await failing(operation, store, PermissionDeniedError)
        assert [node.node_id for node in await store.get_nodes([*ids, "other-0"])] == ids
    await store.close()


async def test_calls_that_share_an_rpc_are_all_told(tls):
    """Nobody waits for a refusal that comes to another, and none is sent again and again."""
    async with tls.store() as store:
        with tls.without("Upsert", "Search"):
            for name in ("add", "query"):
                await refused(OPERATIONS[name], Coloured(store, "async"))
            nodes = make_nodes(50, prefix="many")
            calls = [store.async_add([node]) for node in nodes]
            calls += [store.aquery(query()) for _ in range(50)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} == {PermissionDeniedError}
        assert len({id(error) for error in errors}) == 100
        kinds = [store.stats()[name] for name in ("insert", "search")]
        assert not any(kind.resends or kind.bisections for kind in kinds)


#: What docs/operations.md says that a user needs, and what that user may then do, and what not.
ROLES = {
    "reader": (TO_READ, ["query", "query_many", "get_nodes"], ["add", "delete_nodes", "clear"]),
    "writer": (["Upsert"], ["add"], ["query", "get_nodes", "delete_nodes"]),
    "cleaner": (TO_DELETE, ["delete", "delete_nodes"], ["add", "query", "get_nodes"]),
    "nobody": ([], ["connect"], [name for name in OPERATIONS if name != "connect"]),
}


@pytest.mark.parametrize("role", ROLES)
async def test_the_privileges_of_the_documentation_are_those_that_are_needed(
    tls, coloured, witness, role
):
    privileges, allowed, forbidden = ROLES[role]
    with tls.visitor(*TO_CONNECT, *privileges) as token:
        store = coloured(tls.store(token=token))
        for name in allowed:
            await succeeding(OPERATIONS[name], store)
        for name in forbidden:
            error = await failing(OPERATIONS[name], store, PermissionDeniedError)
            witness.assert_hides(PASSWORD, error=error)
        await store.close()
    with tls.store() as mine:
        mine.delete_nodes(["more-0"])


async def test_a_user_without_any_role(tls, coloured, witness):
    with tls.visitor() as token:
        store = coloured(tls.store(token=token))
        for operation in OPERATIONS.values():
            error = await failing(operation, store, PermissionDeniedError)
            witness.assert_hides(PASSWORD, error=error)
        await store.close()


async def test_a_collection_that_may_not_be_created_or_dropped(tls, coloured, witness):
    with tls.without("CreateCollection"):
        new = coloured(tls.store(collection_name=collection_name("forbidden")))
        error = await refused(OPERATIONS["query"], new)
        assert "CreateCollection" in str(error)
        await new.close()
        again = coloured(tls.store(overwrite=True))
        error = await failing(OPERATIONS["query"], again, PermissionDeniedError)
        assert "DropCollection" in str(error)
        await again.close()
        witness.assert_hides(PASSWORD, error=error)
    with tls.store() as store:
        assert len(store.get_nodes([f"node-{i}" for i in range(4)])) == 4


async def test_making_a_collection_ready_goes_on_where_a_privilege_was_missing(tls):
    """Both colours make ready by the same way: this one is for both."""
    name = collection_name("halfway")
    store = Coloured(tls.store(collection_name=name), "async")
    granted = []
    try:
        for missing in ("IndexDetail", "CreateIndex", "Load"):
            deadline = time.monotonic() + PATIENCE
            error = await refused(OPERATIONS["connect"], store)
            while missing not in str(error) and time.monotonic() < deadline:
                await asyncio.sleep(POLL)  # a proxy may not have heard of the last grant
                error = await refused(OPERATIONS["connect"], store)
            assert missing in str(error)
            granted.append(missing)
            tls.grant("role", missing, name)
        await succeeding(OPERATIONS["connect"], store)
    finally:
        await store.close()
        for privilege in granted:
            tls.revoke("role", privilege, name)
        tls.root.drop_collection(name)


async def test_a_missing_privilege_has_an_error_of_its_own(tls, coloured):
    store = coloured(tls.store())
    with tls.without("Search"):
        forbidden = await refused(OPERATIONS["query"], store)
    await store.close()
    assert "the user may not do this" in str(forbidden)
    store = coloured(tls.store(token=f"{USER}:{WRONG_PASSWORD}"))
    unknown = await failing(OPERATIONS["query"], store, AuthenticationError)
    await store.close()
    assert type(unknown) is AuthenticationError
    assert "the token or password was not accepted" in str(unknown)


async def test_one_user_who_may_not_fails_alone(tls, coloured):
    """Stores of two users in one process share nothing that one of them may not have."""
    with tls.visitor() as token:
        allowed, visitor = coloured(tls.store()), coloured(tls.store(token=token))
        await succeeding(OPERATIONS["query"], allowed)
        await failing(OPERATIONS["query"], visitor, PermissionDeniedError)
        assert (await allowed.query(query())).ids
        await failing(OPERATIONS["query"], visitor, PermissionDeniedError)
        await allowed.close()
        await visitor.close()
