"""Functions of Milvus that rank hits: read from pymilvus' objects, and checked.

Milvus Lite answers a missing parameter with the bare name of it, and servers before 2.6 ignore all
of them: what can be checked is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pymilvus import DataType, Function, FunctionScore, FunctionType

from .._rpc import RankByFunctions, RerankFunction
from .._translation.engine import Engine
from .._translation.layout import Layout
from ..errors import ConfigurationError, QueryError

#: The kinds that make one list of several, and have nothing to do with one.
FUSING = ("rrf", "weighted")
#: The kind that weighs distances, where all others replace them by scores that rise with relevance.
BOOST = "boost"
#: The kind that reads the texts of the questions.
MODEL = "model"

#: In an expression: a text, or a name that is not called like a function.
_TEXT_OR_NAME = re.compile(
    r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?<![\w.$])(?P<name>[A-Za-z_$]\w*)(?!\w*\s*\()"""
)
_KEYWORDS = frozenset(("and", "or", "not", "in", "like", "is", "null", "true", "false", "exists"))
_NUMBERS = (
    *(DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64),
    *(DataType.FLOAT, DataType.DOUBLE),
)


@dataclass(frozen=True)
class _Needs:
    """What a kind needs: parameters, and a column of one of these types; or none of any."""

    params: tuple[str, ...]
    column_types: tuple[DataType, ...] = ()


#: By kind; Milvus decides about kinds that are not here, which may be new.
_NEEDS = {
    "decay": _Needs(("function", "origin", "scale"), _NUMBERS),
    BOOST: _Needs(("weight",)),
    MODEL: _Needs(("provider",), (DataType.VARCHAR,)),
}


def read_functions(value: Function | FunctionScore, argument: str) -> RankByFunctions:
    """Read a ranker of Milvus. The result does not change where the objects are changed later.

    Raises:
        ConfigurationError: It has a function that does not rank, or lacks a parameter.
    """
    score = value if isinstance(value, FunctionScore) else FunctionScore(value)
    given = score.functions
    several = isinstance(given, (list, tuple))
    if not several or not given or not all(isinstance(one, Function) for one in given):
        found = [type(one).__name__ for one in given] if several else type(given).__name__
        raise ConfigurationError(
            f"{argument} is a FunctionScore of {found}; pass it a list of Functions of type RERANK"
        )
    functions = tuple(_read_function(function, argument) for function in given)
    # Its texts belong to the questions of one call.
    own_rpc = object() if any(function.kind == MODEL for function in functions) else None
    return RankByFunctions(functions, _texts(score.params or {}), own_rpc)


def _read_function(given: Function, argument: str) -> RerankFunction:
    if given.type != FunctionType.RERANK:
        raise ConfigurationError(
            f"{argument} is a function of type {given.type.name}; it must be of type RERANK"
        )
    function = RerankFunction(
        given.name, given.description, tuple(given.input_field_names), _texts(given.params)
    )
    named = f"{argument} is the function {function.name!r}"
    if not function.kind:
        raise ConfigurationError(
            f"{named} without params['reranker']; name what it does, such as 'decay' or 'boost'"
        )
    needs = _NEEDS.get(function.kind)
    if needs is None:
        return function
    named = f"{named} with reranker={function.kind!r}"
    if missing := [name for name in needs.params if function.param(name) is None]:
        raise ConfigurationError(f"{named}, and its params lack {missing}; pass them")
    count = len(function.input_fields)
    if count != bool(needs.column_types):
        wanted = "one column" if needs.column_types else "no column (its filter does)"
        raise ConfigurationError(
            f"{named}, and its input_field_names are {list(function.input_fields)}; it reads "
            f"{wanted}"
        )
    return function


def _texts(params: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    """Parameters as they are sent, JSON for what has parts."""
    return tuple(
        (str(key), json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value))
        for key, value in params.items()
    )


def check_columns(ranker: RankByFunctions, layout: Layout, argument: str) -> None:
    """Check that the collection has the columns that functions read.

    Raises:
        QueryError: It has not, or of another type.
    """
    columns = layout.columns.keys()
    for function in ranker.functions:
        if function.kind == BOOST and (keys := _names_in(function.param("filter") or "") - columns):
            asked = f"{argument} boosts by {sorted(keys)}, which no column of the collection has"
            layout.engine.require(Engine.boosts_by_any_metadata, asked, QueryError)
        types = _NEEDS[function.kind].column_types if function.kind in _NEEDS else ()
        for name in function.input_fields if types else ():
            column = layout.columns.get(name)
            if column is not None and column.type in types:
                continue
            asked = f"{argument} has reranker={function.kind!r}, which reads"
            remedy = "or pass a callable as ranker, which reads any metadata"
            if column is None:
                raise QueryError(
                    f"{asked} the column {name!r}, and the collection {layout.collection_name!r} "
                    "has none of that name. Give the metadata key a column when the collection is "
                    f"made, scalar_fields={{{name!r}: DataType.{types[-1].name}}}, {remedy}"
                )
            raise QueryError(
                f"{asked} columns of the types {[one.name for one in types]}, and {name!r} is of "
                f"type {column.type.name}; name another column, {remedy}"
            )


def _names_in(expression: str) -> set[str]:
    """The names of an expression: columns, and keys of the dynamic field."""
    names = {match["name"] for match in _TEXT_OR_NAME.finditer(expression) if match["name"]}
    return {name for name in names if name.lower() not in _KEYWORDS}


def with_texts(ranker: RankByFunctions, query_str: str) -> RankByFunctions:
    """The ranker for a question: a model that has no `queries` gets its text."""
    functions = tuple(
        replace(function, params=(*function.params, ("queries", json.dumps([query_str]))))
        if function.kind == MODEL and function.param("queries") is None
        else function
        for function in ranker.functions
    )
    if functions == ranker.functions:
        return ranker
    return replace(ranker, functions=functions, own_rpc=object())


def with_weights_of(ranker: RankByFunctions, legs: list[int]) -> RankByFunctions:
    """The ranker where only these legs of a search, by their numbers, are searched."""
    functions = tuple(_with_weights_of(function, legs) for function in ranker.functions)
    return replace(ranker, functions=functions)


def _with_weights_of(function: RerankFunction, legs: list[int]) -> RerankFunction:
    try:
        weights = json.loads(function.param("weights") or "")
    except ValueError:
        return function
    if not isinstance(weights, list) or len(weights) <= max(legs):
        return function
    left = json.dumps([weights[leg] for leg in legs])
    params = [(key, left if key.lower() == "weights" else value) for key, value in function.params]
    return replace(function, params=tuple(params))
