"""The command line: `python -m llama_index_milvus_async COMMAND ...`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import ConfigurationError, MilvusVectorStoreError
from ..store import MilvusVectorStore
from ._checking import acheck_nodes
from ._copying import acopy_nodes
from ._models import embed_model_of
from ._parquet import aexport_nodes, aimport_nodes
from ._places import Place, open_existing, open_like, tokens_of
from ._progress import Progress, count_of
from ._reembedding import areembed
from ._sides import no_collection

_DESCRIPTION = """\
Move collections of LlamaIndex nodes between Milvus Lite and servers.

A collection is named by its address, # and its name:
  ./notes.db#notes                            in a file of Milvus Lite
  http://localhost:19530#notes                on a server
  https://milvus.example.org:443/mydb#notes   in the database mydb
"""
_EPILOG = """\
Tokens (user:password, or an API key) are read from the environment, so that nobody sees them in
the list of processes: MILVUS_TOKEN, or SOURCE_MILVUS_TOKEN and TARGET_MILVUS_TOKEN where a command
has two servers.

Exit status: 0 where everything is as it should be, 1 where not, 2 for arguments that are not
allowed, 130 after Ctrl-C.
"""
_OPTION_HELP = (
    "argument of MilvusVectorStore for the {}, such as text_key=body; VALUE is JSON or a string; "
    "repeat it for several"
)

#: What names of secret options have in them.
_WORDS_OF_SECRETS = ("key", "token", "secret", "password")

#: What a command does once its arguments are read; returns the exit status.
Run = Callable[[argparse.Namespace, "Display"], Coroutine[Any, Any, int]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        argv: The arguments; those of the process by default.
    """
    arguments = _parser().parse_args(argv)
    display = Display(sys.stderr)
    run: Run = arguments.run
    try:
        return asyncio.run(run(arguments, display))
    except ConfigurationError as error:
        problem, status = f"error: {error}", 2
    except (MilvusVectorStoreError, ImportError, OSError) as error:
        problem, status = f"error: {error}{_to_go_on(arguments, display)}", 1
    except KeyboardInterrupt:
        problem, status = f"Interrupted.{_to_go_on(arguments, display)}", 130
    display.end()
    _print(_without_secrets(problem, arguments), file=sys.stderr)
    return status


def _print(text: str, *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print where somebody reads it; what is done, and the exit status, do not depend on that."""
    file = file or sys.stdout
    try:
        print(text, end=end, file=file, flush=True)
    except BrokenPipeError:
        # So that neither what comes next nor the end of the process fails.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), file.fileno())


def _without_secrets(text: str, arguments: argparse.Namespace) -> str:
    """A message without the keys that were passed as options of a model, which it may quote."""
    for option in getattr(arguments, "embed_option", ()):
        name, _, value = option.partition("=")
        value = value.strip('"')
        # A short one is a number, such as max_tokens=512.
        if len(value) >= 8 and any(word in name.lower() for word in _WORDS_OF_SECRETS):
            text = text.replace(value, "***")
    return text


def _to_go_on(arguments: argparse.Namespace, display: Display) -> str:
    """What to say of a command that has stopped on its way."""
    if not display.has_begun or not arguments.resumes:
        return ""
    without = " without --replace" if getattr(arguments, "replace", False) else ""
    return f"\nWhat has arrived stays. The same command{without} goes on."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_index_milvus_async",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_copy(commands)
    _add_check(commands)
    _add_export(commands)
    _add_import(commands)
    _add_reembed(commands)
    return parser


def add_command(
    commands: Any, name: str, run: Run, summary: str, *, resumes: bool = False
) -> argparse.ArgumentParser:
    """Add a command; returns its parser, for its arguments.

    Args:
        commands: The commands of the parser.
        name: Its name.
        run: What it does.
        summary: What it does, for `--help`.
        resumes: Whether it goes on where it was interrupted.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, resumes=resumes)
    return parser


def _add_copy(commands: Any) -> None:
    summary = "copy a collection to another place, vectors included"
    parser = add_command(commands, "copy", _copy, summary, resumes=True)
    _add_places(parser)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="write nodes again whose ids the target has already; by default they are left alone",
    )
    parser.add_argument(
        "--keep-extra",
        action="store_true",
        help="let the target keep nodes that the source does not have; by default that is an error",
    )
    parser.add_argument(
        "--batch-size", type=int, default=500, metavar="N", help="nodes at a time (500)"
    )


def _add_check(commands: Any) -> None:
    summary = "compare two collections: which nodes are missing, extra or different"
    parser = add_command(commands, "check", _check, summary)
    _add_places(parser)
    parser.add_argument(
        "--without-vectors", action="store_true", help="compare everything but the vectors"
    )


def _add_export(commands: Any) -> None:
    summary = "write a collection to a Parquet file, vectors included"
    parser = add_command(commands, "export", _export, summary)
    parser.add_argument("source", metavar="SOURCE", help="URI#COLLECTION")
    parser.add_argument("file", metavar="FILE.parquet", help="the file")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file where it is there already"
    )
    _add_options(parser, "source")


def _add_import(commands: Any) -> None:
    summary = "add the nodes of a Parquet file to a collection, which is made where it is missing"
    parser = add_command(commands, "import", _import, summary, resumes=True)
    parser.add_argument("file", metavar="FILE.parquet", help="the file")
    parser.add_argument("target", metavar="TARGET", help="URI#COLLECTION")
    _add_options(parser, "target")


def _add_reembed(commands: Any) -> None:
    summary = "embed a collection with another model, into a new one, and switch an alias to it"
    parser = add_command(commands, "reembed", _reembed, summary, resumes=True)
    parser.add_argument("source", metavar="SOURCE", help="URI#COLLECTION, or URI#ALIAS")
    parser.add_argument("--into", required=True, metavar="NAME", help="the new collection")
    parser.add_argument(
        "--alias", metavar="NAME", help="the alias to switch at the end; without it nothing is"
    )
    parser.add_argument(
        "--embed-model",
        required=True,
        metavar="MODEL",
        help="MODULE:NAME, an embedding model of LlamaIndex or what makes one, such as "
        "llama_index.embeddings.openai:OpenAIEmbedding; or local:NAME, a model of Hugging Face, "
        "which needs the extra huggingface",
    )
    parser.add_argument(
        "--embed-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the model, such as model=text-embedding-3-large; repeat it for several",
    )
    parser.add_argument(
        "--remove-extra",
        action="store_true",
        help="delete nodes of the new collection that the old one does not have; by default they "
        "are an error",
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="nodes at a time (256)"
    )
    _add_options(parser, "source")


def _add_places(parser: argparse.ArgumentParser) -> None:
    for side in ("source", "target"):
        parser.add_argument(side, metavar=side.upper(), help="URI#COLLECTION")
    _add_options(parser, "source", "target")


def _add_options(parser: argparse.ArgumentParser, *sides: str) -> None:
    for side in sides:
        parser.add_argument(
            f"--{side}-option",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=_OPTION_HELP.format(side),
        )


async def _copy(arguments: argparse.Namespace, display: Display) -> int:
    source, target = await _open_places(arguments)
    async with source, target:
        report = await acopy_nodes(
            source,
            target,
            batch_size=arguments.batch_size,
            resume=not arguments.replace,
            keep_extra=arguments.keep_extra,
            on_progress=display,
        )
    display.end()
    there = f", {report.already_there:,} were there already" if report.already_there else ""
    extra = f", {report.extra:,} others are there too" if report.extra else ""
    _print(f"copied {count_of(report.copied)} in {report.seconds:.1f} s{there}{extra}")
    return 0


async def _check(arguments: argparse.Namespace, display: Display) -> int:
    source, target = await _open_places(arguments, creates=False)
    async with source, target:
        report = await acheck_nodes(
            source, target, vectors=not arguments.without_vectors, on_progress=display
        )
    display.end()
    _print(str(report))
    return 0 if report.is_equal else 1


async def _export(arguments: argparse.Namespace, display: Display) -> int:
    place = Place.parse(arguments.source, "SOURCE", arguments.source_option)
    store = await open_existing(place, tokens_of(place)[0])
    if store is None:
        raise no_collection(place.named)
    async with store:
        count = await aexport_nodes(
            store, arguments.file, overwrite=arguments.overwrite, on_progress=display
        )
    display.end()
    _print(f"exported {count_of(count)} to {arguments.file}")
    return 0


async def _import(arguments: argparse.Namespace, display: Display) -> int:
    place = Place.parse(arguments.target, "TARGET", arguments.target_option)
    token = tokens_of(place)[0]
    store = await open_existing(place, token)
    if store is None:
        store = MilvusVectorStore(place.uri, token, place.collection, **place.options)
    try:
        count = await aimport_nodes(arguments.file, store, on_progress=display)
    finally:
        await store.aclose()
    display.end()
    _print(f"imported {count_of(count)} into {place.collection}")
    return 0


async def _reembed(arguments: argparse.Namespace, display: Display) -> int:
    place = Place.parse(arguments.source, "SOURCE", arguments.source_option)
    embed_model = embed_model_of(arguments.embed_model, arguments.embed_option)
    store = await open_existing(place, tokens_of(place)[0], whole=True)
    if store is None:
        raise no_collection(place.named)
    async with store:
        report = await areembed(
            store,
            embed_model,
            into=arguments.into,
            alias=arguments.alias,
            batch_size=arguments.batch_size,
            remove_extra=arguments.remove_extra,
            on_progress=display,
        )
    display.end()
    there = f", {report.already_there:,} were there already" if report.already_there else ""
    _print(
        f"embedded {count_of(report.embedded)} into {report.collection} in {report.seconds:.1f} s"
        f"{there}"
    )
    if report.alias is not None:
        _print(f"{report.alias} points to {report.collection} now")
    if report.previous != report.collection:
        _print(f"{report.previous} is kept; drop it when nobody asks it any more")
    return 0


async def _open_places(
    arguments: argparse.Namespace, *, creates: bool = True
) -> tuple[MilvusVectorStore, MilvusVectorStore]:
    """The stores of source and target; a target that is to be made is like the source."""
    source = Place.parse(arguments.source, "SOURCE", arguments.source_option)
    target = Place.parse(arguments.target, "TARGET", arguments.target_option)
    tokens = tokens_of(source, target)
    opened = await open_existing(source, tokens[0])
    if opened is None:
        raise no_collection(source.named)
    try:
        other = await open_existing(target, tokens[1])
        if other is None:
            if not creates:
                raise no_collection(target.named)
            other = await open_like(target, tokens[1], opened)
    except BaseException:
        await opened.aclose()
        raise
    return opened, other


class Display:
    """Shows how far something has come.

    In a terminal that is a line which changes, otherwise a line every ten seconds.

    Args:
        stream: Where to.
    """

    _SECONDS = 0.2
    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._next = time.monotonic() + (0 if self._is_terminal else self._SECONDS_BETWEEN_LINES)
        self._last: Progress | None = None
        self._width = 0
        #: Whether anything was done.
        self.has_begun = False

    def __call__(self, progress: Progress) -> None:
        """Show a progress, unless one was shown just now."""
        self._last = progress
        self.has_begun = self.has_begun or progress.done > 0
        if time.monotonic() >= self._next:
            self._show(progress)

    def end(self) -> None:
        """Show the last progress, and end the line."""
        if self._last is not None:
            self._show(self._last)
            if self._is_terminal:
                _print("", file=self._stream)
            self._last = None

    def _show(self, progress: Progress) -> None:
        line = progress_line(progress)
        if self._is_terminal:
            _print("\r" + line.ljust(self._width), end="", file=self._stream)
            self._width = len(line)
            self._next = time.monotonic() + self._SECONDS
        else:
            _print(line, file=self._stream)
            self._next = time.monotonic() + self._SECONDS_BETWEEN_LINES


def progress_line(progress: Progress) -> str:
    """A progress as a line: rows, rate and time left."""
    of = f" of {progress.total:,} ({progress.done / progress.total:.0%})" if progress.total else ""
    line = f"{progress.operation}: {progress.done:,}{of} nodes"
    if progress.rate:
        line += f", {progress.rate:,.0f} a second"
    if (left := progress.seconds_left) is not None:
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        line += f", {hours}:{minutes:02}:{seconds:02} left"
    return line
