"""Token, password and credentials of the URI: they reach Milvus, and are shown to nobody."""

import base64
import copy
import json
import logging
import pickle
import traceback
from urllib.parse import quote

import grpc
import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    AuthenticationError,
    ConfigurationError,
    UnreachableError,
)
from tests.fixtures.recorder import recording
from tests.fixtures.servers import free_port
from tests.fixtures.stores import DIM

USER = "keeper"
# Characters that have to be percent-encoded in a URI, and that regular expressions know.
PASSWORD = "Tr0ub4dor+&3@/x%"
TOKEN = f"{USER}:{PASSWORD}"
API_KEY = "k3y-9f2b7c"
SHOWN_NEVER = (
    *(PASSWORD, API_KEY, quote(PASSWORD, safe=""), quote(API_KEY, safe="")),
    *(base64.b64encode(text.encode()).decode() for text in (TOKEN, PASSWORD, API_KEY)),
)


def with_credentials(uri, credentials):
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{credentials}@{rest}"


#: The ways to pass a secret: the arguments for a server, and the token that it has to receive.
WAYS = {
    "token": lambda uri: ({"uri": uri, "token": TOKEN}, TOKEN),
    "api-key": lambda uri: ({"uri": uri, "token": API_KEY}, API_KEY),
    "password": lambda uri: ({"uri": uri, "user": USER, "password": PASSWORD}, TOKEN),
    "uri": lambda uri: ({"uri": with_credentials(uri, f"{USER}:{API_KEY}")}, f"{USER}:{API_KEY}"),
    "encoded-uri": lambda uri: (
        {"uri": with_credentials(uri, f"{USER}:{quote(PASSWORD, safe='')}")},
        TOKEN,
    ),
    "uri-without-user": lambda uri: ({"uri": with_credentials(uri, API_KEY)}, API_KEY),
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def arguments(way):
    return way("http://milvus.example:19530/library")[0]


@pytest.fixture
def recorder(engine):
    with recording(engine.uri) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def collection(engine, make_shared_store):
    if engine.token:
        pytest.skip("the engine checks tokens, and knows none of these")
    return make_shared_store().connect().collection_name


def assert_hidden(text):
    shown = [secret for secret in SHOWN_NEVER if secret in text]
    assert not shown


def texts_of(error):
    """An exception as a handler, a log or a debugger would show it, with all it is chained to."""
    yield "".join(traceback.format_exception(type(error), error, error.__traceback__))
    seen = []
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or current in seen:
            continue
        seen.append(current)
        yield f"{current} {current!r} {current.args} {vars(current)}"
        waiting += [
            current.__cause__,
            None if current.__suppress_context__ else current.__context__,
        ]


def assert_error_hides(error):
    for text in texts_of(error):
        assert_hidden(text)


# Showing a store


def test_no_form_of_a_store_shows_a_secret(arguments):
    store = MilvusVectorStore(**arguments)
    for form in (
        *(repr(store), str(store), f"{[store]}"),
        *(store.to_json(), json.dumps(store.to_dict()), json.dumps(store.model_dump())),
        *(store.model_dump_json(), store.json(), json.dumps(store.dict())),
    ):
        assert_hidden(form)
        assert "milvus.example:19530/library" in form


def test_the_part_of_the_uri_before_the_host_becomes_the_token():
    store = MilvusVectorStore(uri=f"https://{USER}:{quote(PASSWORD, safe='')}@host:1/library")
    assert (store.uri, store.token) == ("https://host:1/library", TOKEN)


def test_a_token_is_preferred_to_the_credentials_of_the_uri():
    store = MilvusVectorStore(uri=f"http://{USER}:{API_KEY}@host:1", token=TOKEN)
    assert (store.uri, store.token) == ("http://host:1", TOKEN)


@pytest.mark.parametrize(
    "copier",
    [
        copy.copy,
        copy.deepcopy,
        MilvusVectorStore.model_copy,
        lambda store: pickle.loads(pickle.dumps(store)),
    ],
    ids=["copy", "deepcopy", "model_copy", "pickle"],
)
def test_copies_carry_the_secrets_and_hide_them_too(arguments, copier):
    store = MilvusVectorStore(**arguments)
    copied = copier(store)
    assert (copied.token, copied.password) == (store.token, store.password)
    assert copied.token or copied.password
    assert_hidden(repr(copied) + copied.to_json())


def test_a_store_rebuilt_from_a_dictionary_is_given_its_secrets_again(arguments):
    data = MilvusVectorStore(**arguments).to_dict()
    bare = MilvusVectorStore.from_dict(data)
    assert (bare.token, bare.password) == ("", "")
    given = MilvusVectorStore.from_dict(data, token=TOKEN, password=PASSWORD)
    assert (given.token, given.password) == (TOKEN, PASSWORD)


# Errors of the constructor


@pytest.mark.parametrize(
    "wrong",
    [
        {"uri": f"{TOKEN}@host:19530"},
        {"uri": f"http://{TOKEN}@host:19530"},
        {"uri": f"http://{USER}:{API_KEY}/@host:19530"},
        {"uri": f"http://{USER}:{API_KEY}#@host:19530"},
        {"uri": f"http://{USER}:{API_KEY}?@host:19530"},
        {"uri": f"http://{USER}:{API_KEY}[@host:19530"},
        {"uri": f"http://{USER}:{API_KEY}@host/milvus.db"},
        {"token": (TOKEN,)},
        {"password": [PASSWORD]},
        {"token": TOKEN, "password": PASSWORD, "dim": 0},
        {"token": TOKEN, "password": PASSWORD, "index_config": "FLAT"},
    ],
    ids=range(11),
)
def test_a_refused_argument_shows_no_secret(wrong):
    with pytest.raises(ConfigurationError) as caught:
        MilvusVectorStore(**wrong)
    assert_error_hides(caught.value)


# Connections


def authorizations(calls):
    """The tokens that came with requests, decoded."""
    return {base64.b64decode(call.metadata["authorization"]).decode() for call in calls}


async def test_the_clients_of_both_colours_send_the_token(way, recorder, collection):
    arguments, token = way(recorder.uri)
    async with MilvusVectorStore(**arguments, collection_name=collection) as store:
        await store.aget_nodes(["node-0"])
        store.get_nodes(["node-0"])
    assert authorizations(recorder.of("sync")) == {token}
    assert authorizations(recorder.of("async")) == {token}


def refuse(status, echo=False):
    """Answers every request with an error, which may repeat the token as a careless server does."""

    def answer(call):
        token = base64.b64decode(call.metadata.get("authorization", "")).decode()
        return status, f"auth check failure for {token}" if echo else "auth check failure"

    return answer


def query():
    return VectorStoreQuery(query_embedding=[1.0] * DIM)


@pytest.mark.parametrize("echo", [False, True], ids=["terse", "echo"])
async def test_an_unauthorised_connection_shows_no_secret(way, recorder, coloured, caplog, echo):
    recorder.intercept = refuse(grpc.StatusCode.UNAUTHENTICATED, echo)
    arguments, token = way(recorder.uri)
    store = coloured(MilvusVectorStore(**arguments, dim=DIM, timeout=5))
    with caplog.at_level(logging.DEBUG), pytest.raises(AuthenticationError) as caught:
        await store.query(query())
    assert recorder.uri in str(caught.value)
    assert "token or password" in str(caught.value)
    assert_error_hides(caught.value)
    # What a server says, pymilvus logs itself.
    logs = [r for r in caplog.records if not (echo and r.name.startswith("pymilvus"))]
    assert_hidden("".join(map(logging.Formatter().format, logs)))
    assert authorizations(recorder.calls) == {token}
    await store.close()


@pytest.mark.parametrize("echo", [False, True], ids=["terse", "echo"])
async def test_a_token_that_is_refused_later_is_not_shown(
    recorder, collection, coloured, caplog, echo
):
    arguments = {"uri": recorder.uri, "token": TOKEN, "collection_name": collection, "timeout": 5}
    store = coloured(MilvusVectorStore(**arguments))
    await store.connect()
    recorder.intercept = refuse(grpc.StatusCode.UNAUTHENTICATED, echo)
    with caplog.at_level(logging.DEBUG), pytest.raises(AuthenticationError) as caught:
        await store.query(query())
    assert recorder.calls[-1].colour == store.colour
    assert_error_hides(caught.value)
    logs = [r for r in caplog.records if not (echo and r.name.startswith("pymilvus"))]
    assert_hidden("".join(map(logging.Formatter().format, logs)))
    await store.close()


async def test_an_unreachable_server_shows_no_secret(way, coloured, caplog):
    arguments, _ = way(f"http://127.0.0.1:{free_port()}")
    store = coloured(MilvusVectorStore(**arguments, dim=DIM, timeout=1))
    with caplog.at_level(logging.DEBUG), pytest.raises(UnreachableError) as caught:
        await store.query(query())
    assert_error_hides(caught.value)
    assert_hidden(caplog.text)
    await store.close()


async def test_a_wrong_scheme_shows_no_secret(coloured, caplog):
    arguments, _ = WAYS["encoded-uri"]("ftp://127.0.0.1:1")
    store = coloured(MilvusVectorStore(**arguments, dim=DIM, timeout=1))
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as caught:
        await store.query(query())
    assert_error_hides(caught.value)
    assert_hidden(caplog.text)


async def test_making_a_collection_logs_no_secret(recorder, engine, make_store, coloured, caplog):
    if engine.token:
        pytest.skip("the engine checks tokens, and knows none of these")
    with caplog.at_level(logging.DEBUG):
        store = coloured(make_store(uri=recorder.uri, token=TOKEN))
        await store.query(query())
        await store.close()
    assert store.store.collection_name in caplog.text
    assert_hidden("".join(map(logging.Formatter().format, caplog.records)))
