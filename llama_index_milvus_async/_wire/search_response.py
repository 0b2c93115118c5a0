"""A shorter way from Milvus' search responses to hits.

pymilvus decodes a response one value at a time, 2 to 9 µs for each, all of it before it returns:
40 ms for 1,000 hits of four fields, for which the event loop stands still. This reads a column at
a time, and makes a hit when it is asked for. It takes the place of the two methods of an
asynchronous handler that send searches; whatever it was not written for goes to pymilvus.

It is used for calls that ask for it, as the backend does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from pymilvus import DataType

from .insert_message import SCALARS

logger = logging.getLogger(__name__)

#: Keyword argument of `search` and `hybrid_search` that says: hits may come as `Hits`.
HITS_ON_DEMAND = "hits_on_demand"

# Fields of a response that say more than which rows were found.
_SPECIAL = {"element_indices", "highlight_results", "agg_buckets"}

Hit = dict[str, Any]
#: The value of a row, by its position in the response.
_Column = Callable[[int], Any]


class Response(list["Hits"]):
    """The hits of each query.

    Attributes:
        size: Bytes of the response, estimated: protobuf takes 15 ms to count 10 MB.
    """

    size: int = 0


class Hits(Sequence[Hit]):
    """The hits of one query, best first, with the keys that pymilvus' have.

    Args:
        make: Makes the hit of a position in the response.
        positions: Those of this query.
    """

    __slots__ = ("_make", "_positions")

    def __init__(self, make: Callable[[int], Hit], positions: range) -> None:
        self._make = make
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Hit]:
        return map(self._make, self._positions)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: int | slice) -> Hit | Hits:
        if isinstance(index, slice):
            return Hits(self._make, self._positions[index])
        return self._make(self._positions[index])


def install(handler: Any) -> None:
    """Have an asynchronous handler of pymilvus read its search responses here.

    Does nothing where pymilvus is not as expected.
    """
    try:
        import orjson
        from pymilvus.client.call_context import _api_level_md
        from pymilvus.client.search_result import SearchResult
        from pymilvus.client.utils import check_status
    except ImportError:
        logger.debug("search responses are read by pymilvus: its parts are elsewhere")
        return

    def searching(slow: Callable[..., Any], rpc: str) -> Callable[..., Any]:
        async def search(
            request: Any, timeout: float | None = None, context: Any = None, **kwargs: Any
        ) -> Any:
            # All other calls, such as the user's own through `aclient`, are pymilvus' business.
            if not kwargs.pop(HITS_ON_DEMAND, False):
                return await slow(request, timeout, context=context, **kwargs)
            send = getattr(handler._async_stub, rpc)
            response = await send(request, timeout=timeout, metadata=_api_level_md(context))
            check_status(response.status)
            hits = read(response.results, orjson.loads)
            return SearchResult(response.results) if hits is None else hits

        return search

    for name, rpc in (
        ("_execute_search", "Search"),
        ("_execute_hybrid_search", "HybridSearch"),
    ):
        slow = getattr(handler, name, None)
        if slow is not None and hasattr(handler, "_async_stub"):
            setattr(handler, name, searching(slow, rpc))


def read(results: Any, loads: Callable[[bytes], Any]) -> Response | None:
    """Read the data of a response; `None` where it is not of the common kind.

    Args:
        results: A `schema.proto` SearchResultData.
        loads: Parses JSON, as pymilvus does.
    """
    if not _SPECIAL.isdisjoint(field.name for field, _ in results.ListFields()):
        return None
    scores = list(results.scores)
    ids = list(getattr(results.ids, results.ids.WhichOneof("id_field") or "str_id").data)
    columns: dict[str, _Column] = {}
    dynamic: _Column | None = None
    response = Response()
    response.size = 16 * len(ids)
    for field in results.fields_data:
        column, length, size = _column(field, loads)
        response.size += size
        if column is None or length != len(scores) or len(field.valid_data):
            return None
        if field.is_dynamic:
            dynamic = column
        else:
            columns[field.field_name] = column
    names = {field.field_name for field in results.fields_data}
    wanted = set(results.output_fields) - names
    primary_key = results.primary_field_name or "id"

    def make(position: int) -> Hit:
        entity = {name: column(position) for name, column in columns.items()}
        if dynamic is not None:
            values = dynamic(position)
            if wanted:
                values = {key: value for key, value in values.items() if key in wanted}
            entity.update(values)
        return {primary_key: ids[position], "distance": scores[position], "entity": entity}

    start = 0
    for count in results.topks:
        response.append(Hits(make, range(start, start + count)))
        start += count
    return response


def _column(field: Any, loads: Callable[[bytes], Any]) -> tuple[_Column | None, float, int]:
    """How to get a value of a field by the position of its row, how many there are, and bytes."""
    kind = field.type
    if kind == DataType.VARCHAR:
        texts = list(field.scalars.string_data.data)
        return texts.__getitem__, len(texts), sum(map(len, texts))
    if kind in SCALARS:
        values = list(getattr(field.scalars, SCALARS[kind]).data)
        return values.__getitem__, len(values), 8 * len(values)
    if kind == DataType.JSON:
        jsons = list(field.scalars.json_data.data)
        return lambda position: loads(jsons[position]), len(jsons), sum(map(len, jsons))
    if kind == DataType.FLOAT_VECTOR:
        dim, numbers = field.vectors.dim, field.vectors.float_vector.data
        return (
            lambda position: numbers[position * dim : (position + 1) * dim],
            len(numbers) / dim,
            4 * len(numbers),
        )
    return None, 0, 0
