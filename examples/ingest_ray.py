"""Keep a collection in Milvus equal to a folder of text files, with all cores or with a cluster.

    python examples/ingest_ray.py notes --uri http://localhost:19530
    python examples/ingest_ray.py notes --uri http://milvus:19530 --ray ray://head:10001 --models 8

The second line is for a cluster of Ray, whose machines need this package, and reach Milvus by that
address; without `--ray` a cluster starts on this machine, for as long as the program runs.

Run it again whenever you like. Each passage says which version of its file it is of, and how many
passages that version has: what is there in full is not embedded again. A file that has changed is
written first and its old passages are deleted then; so are those of files that are gone. A run that
was interrupted, at any point, is gone on with by the next one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import (
    CHUNK_OVERLAP,
    CHUNK_SIZE,
    add_store_arguments,
    count,
    load_embed_model,
    positive,
    run_program,
    what_it_needs,
)

with what_it_needs("ingest_ray.py"):
    import ray
    from ingest_parts import read_folder
    from llama_index.core import Document
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.schema import MetadataMode
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

    from llama_index_milvus_async import MilvusVectorStore
    from llama_index_milvus_async.ray import MilvusDatasink, row_of_node

#: Passages that a model embeds at once.
EMBED_BATCH = 32
#: The column of what is embedded: the text, and metadata where it has any that a model should read.
TO_EMBED = "to_embed"


def split(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages of a document, whose ids say which version of it they are of."""
    document = Document.from_json(row["document"])
    splitter = SentenceSplitter(
        chunk_size=CHUNK_SIZE,
        chunk_overlap=CHUNK_OVERLAP,
        id_func=lambda number, document: f"{document.node_id}#{document.hash[:16]}#{number}",
    )
    passages = splitter.get_nodes_from_documents([document])
    for passage in passages:
        passage.metadata |= {"version": document.hash, "passages": len(passages)}
        passage.excluded_embed_metadata_keys += ["version", "passages"]
        passage.excluded_llm_metadata_keys += ["version", "passages"]
    return [
        {**row_of_node(passage), TO_EMBED: passage.get_content(metadata_mode=MetadataMode.EMBED)}
        for passage in passages
    ]


class Embed:
    """An actor that has a model, and embeds passages with it."""

    def __init__(self, model: str | None) -> None:
        self.model = load_embed_model(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add embeddings to a batch of passages."""
        texts = list(batch.pop(TO_EMBED))
        return {**batch, "embedding": self.model.get_text_embedding_batch(texts)}


def ingest(args: argparse.Namespace) -> None:
    """Bring the collection up to date with the folder."""
    folder = args.folder.resolve()
    documents, unread = read_folder(folder)
    store = MilvusVectorStore(uri=args.uri, token=args.token, collection_name=args.collection)
    with store:
        complete = versions(store, folder)
        stale = [each for each in documents if (each.id_, each.hash) not in complete]
        if stale:
            written = embed_and_store(stale, store, args)
            print(f"Embedded and stored {count(stale, 'file')}, passages: {written}.")
        there = {document.id_ for document in documents} | unread
        removed = {doc_id for doc_id, _ in complete if doc_id not in there}
        for document in documents:
            outdated = any(
                doc_id == document.id_ and version != document.hash for doc_id, version in complete
            )
            if outdated or document in stale:
                store.delete_nodes(filters=older_versions(document))
        store.delete(sorted(removed))
        print(
            f"{len(documents) - len(stale)} unchanged, {count(removed, 'file')} removed. "
            f"{args.collection!r} at {store.uri} holds what is in {args.folder}."
        )


def versions(store: MilvusVectorStore, folder: Path) -> set[tuple[str, str]]:
    """The versions of files that the collection has: id of the document, and hash.

    Those that are not there in full count as older versions.
    """
    wanted = MetadataFilters(filters=[MetadataFilter(key="folder", value=str(folder))])
    expected: dict[tuple[str, str], int] = {}
    found: Counter[tuple[str, str]] = Counter()
    for node in store.iter_nodes(wanted, consistency_level="Strong"):
        version = (str(node.ref_doc_id), node.metadata["version"])
        expected[version] = node.metadata["passages"]
        found[version] += 1
    return {
        (doc_id, version if found[doc_id, version] == passages else "incomplete")
        for (doc_id, version), passages in expected.items()
    }


def older_versions(document: Document) -> MetadataFilters:
    """What is stored of a file, but for the version that is there now."""
    same = [MetadataFilter(key=key, value=document.metadata[key]) for key in ("folder", "file")]
    other = MetadataFilter(key="version", value=document.hash, operator=FilterOperator.NE)
    return MetadataFilters(filters=[*same, other])


def embed_and_store(
    documents: Sequence[Document], store: MilvusVectorStore, args: argparse.Namespace
) -> int:
    """Split, embed and write documents with the cluster; returns the number of passages."""
    # The machines of a cluster get the modules of this folder.
    environment = {"working_dir": str(Path(__file__).parent), "excludes": ["data", "*.db"]}
    ray.init(args.ray, runtime_env=environment if args.ray else None)
    sink = MilvusDatasink(store)
    rows = [{"document": document.to_json()} for document in documents]
    (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), 16 * args.models))
        .flat_map(split)
        .map_batches(
            Embed,
            fn_constructor_args=[args.embed_model],
            batch_size=EMBED_BATCH,
            compute=ray.data.ActorPoolStrategy(size=args.models),
        )
        .write_datasink(sink)
    )
    return sink.summary.rows_written


def parse_arguments() -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(
        description="Keep a collection in Milvus equal to a folder of text files, with Ray."
    )
    parser.add_argument("folder", type=Path, help="folder with .txt and .md files in UTF-8")
    add_store_arguments(parser, "http://localhost:19530", "documents")
    add = parser.add_argument
    add("--ray", metavar="ADDRESS", help="a cluster; by default one starts on this machine")
    add("--models", type=positive, default=1, metavar="N", help="actors with a model (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(
        run_program(
            "ingest_ray.py",
            lambda: ingest(parse_arguments()),
            "Interrupted. The same command goes on from here.",
        )
    )
