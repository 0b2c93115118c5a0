"""What the connected engine can do: the one place that knows versions of Milvus and Milvus Lite.

Everything else asks for a capability by its name: `engine.has_sparse_vectors` is true or false,
`engine.require(Engine.has_sparse_vectors, "enable_sparse=True", ConfigurationError)` raises an
error that names the versions that have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

from ..errors import MilvusVectorStoreError

Version = tuple[int, ...]

_MILVUS = "Milvus"
_LITE = "Milvus Lite"
#: Since the first version that this package supports.
_ALWAYS: Version = ()
#: The first version of Milvus Lite that is written anew in Python.
_FIRST_NEW_LITE: Version = (3,)


@dataclass(frozen=True)
class Capability:
    """Something that not every engine does. As an attribute of an `Engine` it is true or false.

    Attributes:
        milvus: The first version of Milvus that does it, `None` where none does.
        lite: The first version of Milvus Lite that does it, `None` where none does; from version 3
            on, which is another program than Milvus Lite 2.
        lack: What to say of an engine that does not: "has no sparse vectors".
        remedy: What to say of those that do: "have them".
        lite2: Whether Milvus Lite 2 does it, which has the core of Milvus 2.5.
    """

    milvus: Version | None
    lite: Version | None
    lack: str = ""
    remedy: str = ""
    lite2: bool = False

    @overload
    def __get__(self, engine: None, owner: type[Engine]) -> Capability: ...

    @overload
    def __get__(self, engine: Engine, owner: type[Engine]) -> bool: ...

    def __get__(self, engine: Engine | None, owner: type[Engine]) -> Capability | bool:
        return self if engine is None else self.is_in(engine)

    def is_in(self, engine: Engine) -> bool:
        """Whether an engine does it."""
        if engine.is_lite_2:
            return self.lite2
        first = self.lite if engine.name == _LITE else self.milvus
        return first is not None and engine.version >= first

    def who(self) -> str:
        """The engines that do it: "Milvus 2.4 and newer, and Milvus Lite,"."""
        # Where Milvus Lite 2 lacks it, "Milvus Lite" alone would not be true.
        lite = _FIRST_NEW_LITE if self.lite == _ALWAYS and not self.lite2 else self.lite
        first = ((_MILVUS, self.milvus), (_LITE, lite))
        engines = [
            f"{name} {_dotted(version)} and newer" if version else name
            for name, version in first
            if version is not None
        ]
        return f"{', and '.join(engines)}," if len(engines) > 1 else "".join(engines)


@dataclass(frozen=True)
class Engine:
    """The connected engine.

    Attributes:
        name: `"Milvus"` or `"Milvus Lite"`.
        version: Its version, such as `(2, 6, 3)`.
    """

    name: str
    version: Version

    # Logins

    #: Takes any token and password, and lets everybody in.
    ignores_logins = Capability(None, _ALWAYS, lite2=True)

    # Vectors

    has_sparse_vectors = Capability(
        (2, 4), _ALWAYS, "has no sparse vectors", "have them", lite2=True
    )
    has_several_vectors = Capability(
        (2, 4), _ALWAYS, "has only one vector field in a collection", "have several", lite2=True
    )
    has_float16_vectors = Capability(
        (2, 4), None, "has no FLOAT16_VECTOR fields", "have them", lite2=True
    )
    has_bfloat16_vectors = Capability(
        (2, 4), None, "has no BFLOAT16_VECTOR fields", "have them", lite2=True
    )
    has_int8_vectors = Capability((2, 6), None, "has no INT8_VECTOR fields", "have them")
    has_binary_vectors = Capability(
        _ALWAYS, None, "has no BINARY_VECTOR fields", "has them", lite2=True
    )

    # Functions of Milvus

    #: Computes sparse vectors from texts (BM25).
    has_full_text = Capability(
        (2, 5), _ALWAYS, "has no functions that encode texts", "have them", lite2=True
    )
    #: Lite takes the argument and ignores it. https://milvus.io/docs/multi-language-analyzers.md
    has_multi_analyzers = Capability(
        (2, 5, 11), None, "has one analyzer for all texts of a field", "has several"
    )
    #: Older servers, and Milvus Lite 2, take functions of type RERANK and ignore them.
    has_rerank_functions = Capability(
        (2, 6),
        _ALWAYS,
        "has no functions that rerank",
        "have them; a callable ranks on every engine",
    )
    #: Milvus Lite finds no key of the dynamic field where it evaluates the filter of a boost.
    boosts_by_any_metadata = Capability(
        (2, 6), None, "sees only columns there", "sees all metadata"
    )

    # Searches

    #: Older servers ignore the wish.
    has_grouping = Capability((2, 4), _ALWAYS, "cannot group hits", "can", lite2=True)
    has_ranges_in_hybrid_search = Capability(
        (2, 4),
        None,
        "ignores them in a hybrid search (leave them out, or pass alpha)",
        "heed them",
        lite2=True,
    )
    #: Gives the scores of BM25 a minus.
    negates_bm25 = Capability(None, _ALWAYS)
    #: An HNSW index returns no more hits than `ef`, and drops what the filter refuses, or what
    #: was deleted, only after the search. Milvus itself does neither.
    drops_hits_after_search = Capability(None, _ALWAYS)
    #: Searches that overlap take longer than the same searches one after the other.
    slows_down_concurrent_searches = Capability(None, _ALWAYS)
    #: Finds nothing in a partition that does not exist, instead of refusing.
    ignores_unknown_partitions = Capability(None, _ALWAYS)
    #: Each search looks at all rows that were not flushed.
    scans_unflushed_rows = Capability(None, _ALWAYS)

    # Writes

    #: Merges the dynamic keys of an upserted row into the old ones, instead of replacing them.
    merges_upserted_rows = Capability(None, _ALWAYS)
    #: An insert replaces the row of the same primary key, instead of adding a second one.
    replaces_on_insert = Capability(None, _ALWAYS)
    #: A delete by filter stays within its partition; others delete from every partition.
    deletes_within_partition = Capability(_ALWAYS, None, lite2=True)
    #: Killed after several requests had written at the same time, it loses acknowledged rows.
    needs_one_writer = Capability(None, _ALWAYS)
    #: Has built an index when it answers, so that there is nothing to wait for.
    builds_indexes_at_once = Capability(None, _ALWAYS, lite2=True)
    #: Has defaults of every parameter of an index.
    has_index_defaults = Capability((2, 5), _ALWAYS, "has no default", "have them", lite2=True)
    #: Trie indexes of texts, and sorted ones of numbers.
    has_classic_scalar_indexes = Capability(
        _ALWAYS, None, "has only indexes of type INVERTED for scalar columns", "has others"
    )
    has_inverted_indexes = Capability(
        (2, 4), _ALWAYS, "has no INVERTED indexes", "have them", lite2=True
    )
    has_array_indexes = Capability(
        (2, 5), None, "has no such index for a column of that type", "have it"
    )
    has_newest_scalar_indexes = Capability((2, 6), None, "has no such index", "have it")
    #: Indexes of paths in JSON. Milvus builds them since 2.5.7; there, with an index, a negation
    #: loses the rows that have no such value (milvus#40629), which `has_unknown` expects.
    has_path_indexes = Capability(
        (2, 6),
        None,
        "has none that filters can rely on (give the keys columns, with an index: scalar_fields)",
        "have them",
    )
    #: Reads the parameters of an index only from a nested dictionary.
    nests_index_params = Capability(None, _ALWAYS)

    #: Any text can be an id. Milvus Lite 2 puts ids into SQL as they are when it upserts or
    #: deletes: one with an apostrophe makes that fail, or removes other rows from the file.
    has_any_id = Capability(_ALWAYS, _ALWAYS, "takes no id with an apostrophe or NUL", "do")

    # Collections

    has_partitions = Capability(_ALWAYS, _ALWAYS, "has no partitions", "have them")
    has_databases = Capability(_ALWAYS, _ALWAYS, "has one database only", "have several")
    #: Properties of a collection can be set.
    has_properties = Capability(_ALWAYS, _ALWAYS, "cannot set properties of a collection", "can")
    #: Takes every index type; Milvus Lite 3 takes them, and searches by brute force.
    has_all_index_types = Capability(
        _ALWAYS,
        _ALWAYS,
        "has only FLAT, IVF_FLAT and AUTOINDEX, BIN_FLAT for BINARY_VECTOR, and the sparse ones",
        "have it",
    )
    has_partition_key = Capability(_ALWAYS, (3,), "has no partition keys", "have them")
    #: Older servers put an upserted row where searches with a filter on the key do not look.
    upserts_by_partition_key = Capability(
        (2, 4), (3,), "puts upserted rows into partitions of other keys", "do not"
    )
    has_partition_key_isolation = Capability(
        (2, 5), None, "has one index for all values of a partition key", "have one for each"
    )
    #: Columns of points in time. 2.3.5 takes them, and dies when it loads the collection.
    has_timestamps = Capability((2, 6, 6), (3,), "has no TIMESTAMPTZ fields", "have them")
    #: Keeps how many shards and replicas were asked for, and a description.
    keeps_shards = Capability(_ALWAYS, None)

    # Expressions

    #: `not`, `exists` and empty lists.
    has_negation = Capability(_ALWAYS, _ALWAYS)
    #: `like "%"` is true for every text; else for none.
    likes_any_text = Capability(_ALWAYS, _ALWAYS)
    #: Reads `\n`, `\r` and `\t` in a text; else a tab stands as it is, and nothing for the others.
    has_escapes_in_texts = Capability(_ALWAYS, _ALWAYS)
    #: Knows *unknown* beside true and false (milvus#46820, milvus#50699).
    has_unknown = Capability((2, 6), _ALWAYS)
    #: `like` finds text anywhere, not only at the beginning (milvus#30288).
    has_infix_like = Capability(
        (2, 4), _ALWAYS, "compares only the beginning of a text", "find text anywhere", lite2=True
    )
    #: `like` always heeds a backslash before a wildcard.
    has_escapes_in_like = Capability(
        (2, 4),
        None,
        "cannot look for '%' or '_', or for a backslash at the end, inside a text",
        "can",
        lite2=True,
    )
    #: `=~` (milvus#48951).
    has_regex = Capability((3,), None, "has no comparison without case", "has regular expressions")
    #: Columns can be null, and `is null` asks for it.
    has_null = Capability((2, 5), _ALWAYS, "has no columns that may lack a value", "have them")
    #: Any text can be a key in an expression.
    has_any_key = Capability(None, _ALWAYS)
    #: Compares values in JSON as Python does: booleans are numbers, and functions need plain names.
    compares_json_as_python = Capability(None, _ALWAYS)

    @classmethod
    def parse(cls, server_version: str) -> Engine:
        """Read the answer of `get_server_version`.

        `"milvus_lite-3.2.2"` is Milvus Lite; `"v2.3.5-lite"` is not, it is how the standalone
        server of the PyPI package `milvus` calls itself. A text without a version number, such
        as that of a build from a branch, is taken for Milvus 2.6.
        """
        lite = re.match(r"milvus[-_ ]?lite\D*(\d+(?:\.\d+)*)", server_version, re.IGNORECASE)
        if lite:
            return cls(_LITE, _version(lite[1]))
        milvus = re.match(r"\s*v?(\d+(?:\.\d+)+)", server_version, re.IGNORECASE)
        return cls(_MILVUS, _version(milvus[1]) if milvus else (2, 6))

    @property
    def is_lite_2(self) -> bool:
        """Whether it is Milvus Lite 2: the core of Milvus 2.5 behind a small server of its own."""
        return self.name == _LITE and self.version < _FIRST_NEW_LITE

    def takes_id(self, node_id: str) -> bool:
        """Whether a text can be the id of a row, and be looked up."""
        return self.has_any_id or not ("'" in node_id or "\0" in node_id)

    def __str__(self) -> str:
        return f"{self.name} {_dotted(self.version)}"

    def require(
        self, capability: Capability, asked: str, error: type[MilvusVectorStoreError]
    ) -> None:
        """Raise an error where the engine lacks a capability.

        Args:
            capability: The capability, such as `Engine.has_grouping`.
            asked: What needs it, as the user wrote it: `"enable_sparse=True"`.
            error: The class of the error.
        """
        if not capability.is_in(self):
            raise error(
                f"{asked}: {self} {capability.lack}; {capability.who()} {capability.remedy}"
            )


def _version(text: str) -> Version:
    return tuple(map(int, text.split(".")))


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
