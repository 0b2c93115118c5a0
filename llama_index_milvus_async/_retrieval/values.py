"""Checks of single values that callers pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from .._translation.numbers import is_integer
from ..errors import ConfigurationError, MilvusVectorStoreError, QueryError, abridged

#: Milvus' largest top k (https://milvus.io/docs/limitations.md#Top-K).
MAX_TOP_K = 16_384
# Texts may be of any length, and messages end up in logs.
_SHOWN_CHARACTERS = 100
_QUOTED_CHARACTERS = 500


def are_several(values: Any) -> bool:
    """Whether values are a collection; a text is one value, not its letters."""
    return isinstance(values, Collection) and not isinstance(values, (str, bytes, Mapping))


def are_texts(values: Any) -> bool:
    """Whether values are a collection of texts, which may be empty."""
    return are_several(values) and all(isinstance(value, str) for value in values)


def as_nodes(nodes: Any) -> list[BaseNode]:
    """Nodes as a list; a single one is taken as well.

    Raises:
        ConfigurationError: They are not nodes.
    """
    if isinstance(nodes, BaseNode):
        return [nodes]
    if not isinstance(nodes, Iterable) or isinstance(nodes, (str, bytes, Mapping)):
        raise ConfigurationError(f"nodes is {described(nodes)}; it must be a list of nodes")
    listed = list(nodes)
    for position, node in enumerate(listed):
        if not isinstance(node, BaseNode):
            raise ConfigurationError(
                f"nodes[{position}] is {described(node)}; it must be a node, such as a TextNode "
                "with an embedding"
            )
    return listed


def check_is_query(argument: str, query: Any) -> None:
    """Check that a query is one.

    Raises:
        QueryError: It is something else, such as the text of a question.
    """
    if not isinstance(query, VectorStoreQuery):
        raise QueryError(
            f"{argument} is {described(query)}; it must be a VectorStoreQuery. To ask with a text, "
            "use a retriever: VectorStoreIndex.from_vector_store(store).as_retriever()"
        )


def described(value: Any) -> str:
    """A value as messages show it: texts and numbers, and the type of anything else."""
    if isinstance(value, (str, bytes, int, float)):
        return f"{abridged(repr(value), _SHOWN_CHARACTERS)}, a value of type {type(value).__name__}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """The type of an error of others and what it says, on one line, as messages quote it."""
    text = abridged(" ".join(str(error).split()), _QUOTED_CHARACTERS)
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind


def check_flag(argument: str, value: Any) -> None:
    """Check a switch.

    Raises:
        ConfigurationError: It is neither `True` nor `False`; `"no"` would count as `True`.
    """
    if not isinstance(value, (bool, type(None))):
        raise ConfigurationError(f"{argument} is {value!r}; it must be True or False")


def check_ids(argument: str, ids: Any) -> None:
    """Check that ids come as a collection, of any size, and not as a single id.

    Raises:
        QueryError: They do not.
    """
    if ids is not None and not are_several(ids):
        raise QueryError(f"{argument} is {ids!r}; it must be a list of ids")


def check_output_fields(names: Any) -> None:
    """Check the fields that a read is to return.

    Raises:
        QueryError: They are not a list of names. A text would be taken for a list of its letters.
    """
    if names is not None and not are_texts(names):
        raise QueryError(f"output_fields is {names!r}; it must be a list of names")


def check_embedding(argument: str, embedding: Any) -> None:
    """Check that an embedding is a collection; of what, the column decides.

    Raises:
        QueryError: It is not.
    """
    if not isinstance(embedding, Collection):
        raise QueryError(f"{argument} is {embedding!r}; it must be a list of numbers")


def check_top_k(name: str, value: Any) -> None:
    """Check a number of hits against Milvus' limits.

    Raises:
        QueryError: It is not an integer in 1..16,384.
    """
    if not is_integer(value):
        raise QueryError(f"{name} is {value!r}; it must be an integer")
    if not 1 <= value <= MAX_TOP_K:
        raise QueryError(f"{name} is {value}; Milvus takes 1 to {MAX_TOP_K}")


def check_count(
    argument: str, value: Any, error: type[MilvusVectorStoreError] = QueryError
) -> None:
    """Check a number of nodes.

    Raises:
        QueryError: It is not an integer of at least 1. Or `error`, where the call asks nothing.
    """
    if not is_integer(value) or value < 1:
        raise error(f"{argument} is {value!r}; it must be an integer of at least 1")


def check_search_config(argument: str, config: Any) -> None:
    """Check the search parameters of a field.

    Raises:
        QueryError: They are not a mapping, or have an offset.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("params") or {}, Mapping):
        raise QueryError(
            f"{argument} is {config!r}; it must be a mapping such as "
            '{"ef": 64} or {"params": {"ef": 64}}'
        )
    if "offset" in {*config, *(config.get("params") or {})}:
        raise QueryError(f"{argument} has an offset; pass it to the query itself, as offset=...")
