"""What the package may use of pymilvus, and that it needs nothing else.

Three private names: the handler of a client, and the handler's sync and async stub; see
`_wire/stub.py`. With any other pymilvus inside, all operations work.
"""

from __future__ import annotations

import ast
import inspect
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymilvus
import pytest
from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
from pymilvus.client.grpc_handler import GrpcHandler

import llama_index_milvus_async
from llama_index_milvus_async._wire.address import CLIENT_OPTIONS, Address
from llama_index_milvus_async._wire.stub import RPCS, Stub, async_handler, blocking_stub
from llama_index_milvus_async.errors import PymilvusNotSupportedError
from tests.fixtures import other_pymilvus
from tests.fixtures.faults import Faulty
from tests.fixtures.other_pymilvus import CONTRACT

PACKAGE = Path(llama_index_milvus_async.__file__).parent
ROOT = Path(__file__).parents[1]

#: What runs against another pymilvus: a path through every operation, calls that share RPCs, and
#: what is sent how often.
OPERATIONS = (
    "tests/test_one_path.py",
    "tests/test_transport.py",
    "tests/test_coalesced_operations.py",
)
#: What takes long there, because of its many rows or because it starts processes.
NOT = ("a_script", "each_thousand", "rate_limit", "standalone", "external")
#: It takes 15 seconds, and many times that where the machine is busy.
SECONDS = 300

# The package's side


@pytest.mark.parametrize("handler", [GrpcHandler, AsyncGrpcHandler])
def test_the_constructor_takes_every_argument_that_a_client_reads(handler: type) -> None:
    """A new one would be refused as unknown."""
    methods = (getattr(handler, name) for name in ("__init__", "_set_authorization"))
    read = set(re.findall(r'kwargs\.get\("(\w+)"', "".join(map(inspect.getsource, methods))))
    assert {"secure", "ca_pem_path", "grpc_options"} <= read
    # The client itself makes an address of the URI.
    assert read - {"address", "token", "uri"} <= CLIENT_OPTIONS


def sources() -> Iterator[tuple[str, ast.AST]]:
    for path in PACKAGE.rglob("*.py"):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text("utf-8"))


#: Where the package may use private names of others, and which.
ALLOWED = {
    "_wire/stub.py": {*CONTRACT, "_on_rpc_error"},
    # Guarded: a new name costs a line of the log.
    "_transport/lite.py": {"_lock_fd", "_servers"},
}
#: Of named tuples.
DOCUMENTED = {"_replace", "_asdict", "_fields"}


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private attributes that are used, those of `getattr` and the like included."""
    for node in ast.walk(tree):
        name: Any = None
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            name = getattr(node.args[1], "value", None)
        if isinstance(name, str) and other_pymilvus.PRIVATE.fullmatch(name):
            yield name


def test_private_names_of_others_are_used_in_two_places() -> None:
    own = set[str]().union(*(other_pymilvus.defined_names(tree) for _, tree in sources()))
    # `_get_connection` is both: pymilvus', and that of the package's subclass.
    foreign = set[str]().union(*ALLOWED.values())
    used = {
        path: set(private_names(tree))
        for path, tree in sources()
        # Embedding models of LlamaIndex have their methods for subclasses, which are private.
        if not path.startswith("_embedding/")
    }
    of_others = {path: names & foreign | names - own - DOCUMENTED for path, names in used.items()}
    assert {path: names for path, names in of_others.items() if names} == ALLOWED


def test_nothing_private_of_pymilvus_is_imported() -> None:
    for path, tree in sources():
        for node in ast.walk(tree):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names] if not node.level else []
            for name in names:
                if name.split(".")[0] in ("pymilvus", "milvus_lite"):
                    assert "._" not in name, f"{path} imports {name}"


def test_protobuf_is_known_in_one_package() -> None:
    using = {path.split("/")[0] for path, tree in sources() if "_pb2" in ast.dump(tree)}
    assert using == {"_wire"}


# Where the three names are not as expected


ADDRESS = Address("http://127.0.0.1:1")


def without(missing: str) -> Any:
    """A handler whose stubs lack an RPC."""
    rpcs = {rpc: lambda *args, **kwargs: None for rpc in RPCS if rpc != missing}
    return SimpleNamespace(_stub=SimpleNamespace(**rpcs), _async_stub=SimpleNamespace(**rpcs))


@pytest.mark.parametrize("attribute", ["_stub", "_async_stub"])
@pytest.mark.parametrize("rpc", RPCS)
def test_a_missing_rpc_is_told(rpc: str, attribute: str) -> None:
    with pytest.raises(PymilvusNotSupportedError, match=rf"{attribute} has no {rpc}, .*>=2\.6"):
        Stub(without(rpc), attribute, ADDRESS)


@pytest.mark.parametrize("attribute", ["_stub", "_async_stub"])
def test_a_missing_stub_is_told(attribute: str) -> None:
    with pytest.raises(PymilvusNotSupportedError) as error:
        Stub(SimpleNamespace(), attribute, ADDRESS)
    message = str(error.value)
    assert f"pymilvus {pymilvus.__version__} is not supported" in message
    assert f"SimpleNamespace.{attribute} has no {', '.join(RPCS)}" in message
    assert 'pip install "pymilvus>=' in message


async def test_a_missing_handler_is_told() -> None:
    message = "SimpleNamespace has no _get_connection"
    with pytest.raises(PymilvusNotSupportedError, match=message):
        blocking_stub(SimpleNamespace(), ADDRESS)
    with pytest.raises(PymilvusNotSupportedError, match=message):
        await async_handler(SimpleNamespace())


# Another pymilvus


MakeOther = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def make_other(tmp_path_factory: pytest.TempPathFactory) -> MakeOther:
    """Makes another pymilvus; returns the environment of processes that import it."""

    def make(**options: Any) -> dict[str, str]:
        seed = random.randrange(10**6)
        print(f"seed of the names: {seed}")
        directory = tmp_path_factory.mktemp("other-pymilvus")
        other_pymilvus.make(directory, seed, **options)
        path = os.pathsep.join([str(directory), str(ROOT)])
        # What starts is a run of its own, also where a worker of one starts it.
        own = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
        return {**own, "PYTHONPATH": path, "OTHER_PYMILVUS": str(directory)}

    return make


def run(environment: dict[str, str], *arguments: str) -> str:
    """Run Python where another pymilvus is imported; returns what it says."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


CHECK = """
import os, sys
import pymilvus
assert pymilvus.__file__.startswith(os.environ["OTHER_PYMILVUS"]), pymilvus.__file__
from pymilvus import MilvusClient
from pymilvus.client.grpc_handler import GrpcHandler
assert hasattr(MilvusClient, "_get_connection")
assert not hasattr(GrpcHandler, "_get_schema")
assert GrpcHandler.insert_rows.__wrapped__.__wrapped__
"""


@pytest.mark.starts
@pytest.mark.timeout(SECONDS + 60)
def test_all_operations_work_with_another_pymilvus(make_other: MakeOther) -> None:
    other = make_other()
    run(other, "-c", CHECK)
    said = run(
        other,
        *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("-k", " and ".join(f"not {one}" for one in NOT), *OPERATIONS),
    )
    print(said)
    assert " passed" in said
    assert " skipped" not in said.splitlines()[-1]


USE = """
import asyncio, sys
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import PymilvusNotSupportedError

store = MilvusVectorStore(uri=sys.argv[1], collection_name="contract", dim=2)
nodes = [TextNode(id_="a", text="a", embedding=[1.0, 0.0])]
query = VectorStoreQuery(query_embedding=[1.0, 0.0])

async def use():
    for call in (
        lambda: store.async_add(nodes),
        lambda: store.aquery(query),
        lambda: store.adelete("a"),
        lambda: store.aget_nodes(["a"]),
    ):
        try:
            await call()
        except PymilvusNotSupportedError as error:
            print("async:", error)
    await store.aclose()

for call in (
    lambda: store.add(nodes),
    lambda: store.query(query),
    lambda: store.delete("a"),
    lambda: store.get_nodes(["a"]),
):
    try:
        call()
    except PymilvusNotSupportedError as error:
        print("sync:", error)
asyncio.run(use())
"""


@pytest.mark.engines("lite")
@pytest.mark.parametrize(
    ("keep", "told"),
    [
        # Where the async side is used first, the collection is set up by the sync one.
        (CONTRACT - {"_get_connection"}, "has no _get_connection, by which"),
        (CONTRACT - {"_stub"}, "GrpcHandler._stub has no Insert, Upsert, Delete"),
    ],
    ids=["_get_connection", "_stub"],
)
def test_where_a_name_of_the_contract_is_another_nothing_is_sent(
    make_other: MakeOther, faulty: Faulty, keep: frozenset[str], told: str
) -> None:
    other = make_other(keep=keep)
    said = run(other, "-c", USE, faulty.proxy.uri).splitlines()
    for colour in ("sync", "async"):
        errors = [line for line in said if line.startswith(f"{colour}: ")]
        assert len(errors) == 4, said
        assert all(told in error and "pip install" in error for error in errors), said
    requests = set(faulty.proxy.counts.requests)
    assert not requests & {*RPCS, "CreateCollection", "DropCollection", "LoadCollection"}, requests
