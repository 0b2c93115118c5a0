"""Columns: their values have one type, so that most operators match none of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pymilvus import DataType

from ..errors import FilterError
from .engine import Engine
from .expressions import (
    INTEGER,
    MAX_INTEGER,
    Expr,
    Scalar,
    all_of,
    any_of,
    column_name,
    contains,
    contains_insensitive,
    list_literal,
    literal,
    negated,
)
from .layout import Column
from .targets import COMPARE, Target, call_contains, numbers_among, texts_among


class ColumnTarget(Target):
    """A real column.

    Attributes:
        null: Matches the rows that have no value there.
        refuses_lists: Whether operators on lists are an error, where it holds none. They are not
            where other rows can have a list under the same key, in their metadata.
    """

    refuses_lists = True

    def __init__(self, name: str, engine: Engine, *, nullable: bool) -> None:
        self.name = column_name(name)
        self.engine = engine
        self.null: Expr = f"{self.name} is null" if nullable and engine.has_null else False

    def decide(self, match: Expr, positive: bool) -> Expr:
        """Match the rows for which a test is true; on null it may be unknown."""
        if not positive:
            return any_of([self.null, negated(match)])
        return negated(self.null) if match is True else match

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self.decide(self._in(values), positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return self.decide(False, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.decide(every and not values, positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        return self.decide(False, positive)

    def empty(self, positive: bool) -> Expr:
        return self.null if positive else negated(self.null)

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self._no_list(positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self._no_list(positive)

    def _no_list(self, positive: bool) -> Expr:
        if not self.refuses_lists:
            return not positive
        raise FilterError(
            f"the column {self.name!r} holds no lists; operators on lists are for ARRAY columns, "
            "JSON columns and metadata"
        )

    def _in(self, values: Sequence[Scalar]) -> Expr:
        if self.name.endswith("]"):  # Lite takes `in` after the name of a column only
            return any_of(f"{self.name} == {literal(each)}" for each in values)
        return f"{self.name} in {list_literal(values)}" if values else False


class TextColumn(ColumnTarget):
    """A VARCHAR column."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return super().one_of(texts_among(values), positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        test = isinstance(value, str) and f"{self.name} {symbol} {literal(value)}"
        return self.decide(test, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        texts = texts_among(values)
        if every and len(texts) < len(values):
            return self.decide(False, positive)
        tests = [contains(self.engine, self.name, each) for each in texts]
        return self.decide((all_of if every else any_of)(tests), positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        test = contains_insensitive if insensitive else contains
        return self.decide(test(self.engine, self.name, needle), positive)

    def empty(self, positive: bool) -> Expr:
        test = any_of([self.null, f'{self.name} == ""'])
        return test if positive else negated(test)


class IntegerColumn(ColumnTarget):
    """An INT column; the server refuses to compare it with 2.5, or even with 2.0."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        whole = [each for each in numbers_among(values) if isinstance(each, int)]
        return super().one_of(whole, positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if isinstance(value, str):
            return self.decide(False, positive)
        if isinstance(value, float) and abs(value) > MAX_INTEGER:
            return self.decide(COMPARE[symbol](0, value), positive)
        bound = math.floor(value) if symbol in (">", "<=") else math.ceil(value)
        return self.decide(f"{self.name} {symbol} {literal(bound)}", positive)


class IntegerKeyColumn(IntegerColumn):
    """An INT64 primary key. The id of a node is text in LlamaIndex, so text means its number."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return super().one_of([self._number(each) for each in values], positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return super().ordered(symbol, self._number(value), positive)

    @staticmethod
    def _number(value: Scalar) -> Scalar:
        return int(value) if isinstance(value, str) and INTEGER.fullmatch(value) else value


class FloatColumn(ColumnTarget):
    """A FLOAT or DOUBLE column; Lite converts it to integers to compare it with integers."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        numbers = numbers_among(values)
        return super().one_of([float(each) for each in numbers if float(each) == each], positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if isinstance(value, str):
            return self.decide(False, positive)
        bound = float(value)
        if bound != value:  # A large integer, and no double lies between the two.
            symbol = symbol[0] + ("=" if (bound > value) == (symbol[0] == ">") else "")
        return self.decide(f"{self.name} {symbol} {literal(bound)}", positive)


class BooleanColumn(ColumnTarget):
    """A BOOL column; `True` is 1 and `False` 0, as in Python."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self._where(lambda each: each in values, positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        compares = not isinstance(value, str)
        return self._where(lambda each: compares and COMPARE[symbol](each, value), positive)

    def _where(self, accepts: Callable[[bool], bool], positive: bool) -> Expr:
        accepted = [each for each in (True, False) if accepts(each)]
        if len(accepted) == 2:
            return self.decide(True, positive)
        return self.decide(bool(accepted) and f"{self.name} == {literal(accepted[0])}", positive)


class ArrayColumn(ColumnTarget):
    """An ARRAY column. Milvus itself refuses elements of another type than the column's."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self.decide(False, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        numbers = numbers_among(values)
        if any(isinstance(each, float) for each in numbers):  # in one list all of one type
            numbers = [float(each) for each in numbers]
        groups: list[Sequence[Scalar]] = [texts_among(values), numbers]
        tests = [
            call_contains("array_contains", self.name, group, every) for group in groups if group
        ]
        return self.decide((all_of if every else any_of)(tests), positive)

    def empty(self, positive: bool) -> Expr:
        test = any_of([self.null, f"array_length({self.name}) == 0"])
        return test if positive else negated(test)

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.contains(values, every, positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self.decide(f"array_length({self.name}) == {literal(length)}", positive)


COLUMN_TARGETS: dict[DataType, type[ColumnTarget]] = {
    DataType.VARCHAR: TextColumn,
    DataType.BOOL: BooleanColumn,
    DataType.INT8: IntegerColumn,
    DataType.INT16: IntegerColumn,
    DataType.INT32: IntegerColumn,
    DataType.INT64: IntegerColumn,
    DataType.FLOAT: FloatColumn,
    DataType.DOUBLE: FloatColumn,
    DataType.ARRAY: ArrayColumn,
}


def element_target(column: Column, position: int, engine: Engine) -> ColumnTarget:
    """An element of an ARRAY column; a row whose list is shorter has no value there."""
    kind = COLUMN_TARGETS[column.element_type or DataType.NONE]
    target = kind(column.name, engine, nullable=True)
    target.null = any_of([target.null, f"array_length({target.name}) <= {position}"])
    target.name += f"[{position}]"
    return target
