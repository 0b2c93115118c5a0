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
    without_negation,
)
from .layout import Column
from .targets import COMPARE, OPPOSITE, Target, call_contains, numbers_among, texts_among


class ColumnTarget(Target):
    """A real column.

    Attributes:
        null: Matches the rows that have no value there.
        filled: Matches the rows that have one.
        refuses_lists: Whether operators on lists are an error, where it holds none. They are not
            where other rows can have a list under the same key, in their metadata.
    """

    refuses_lists = True

    def __init__(self, name: str, engine: Engine, *, nullable: bool) -> None:
        self.name = column_name(name)
        self.engine = engine
        self.null: Expr = f"{self.name} is null" if nullable and engine.has_null else False
        self.filled = negated(self.null)

    def decide(self, match: Expr, positive: bool, opposite: Expr | None = None) -> Expr:
        """Match the rows for which a test is true; on null it may be unknown.

        Args:
            match: The test.
            positive: `False` for the rows for which it is not true.
            opposite: The test that is true for all values for which `match` is false, for engines
                that cannot negate it.
        """
        if positive:
            return self.filled if match is True else match
        if isinstance(match, bool) or self.engine.has_negation:
            opposite = negated(match)
        if opposite is None:
            raise without_negation(self.engine, "that do not match")
        return any_of([self.null, opposite])

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        if positive or self.engine.has_negation:
            return self.decide(self._in(values), positive)
        return any_of([self.null, self._not_in(values)])

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return self.decide(False, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.decide(every and not values, positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        return self.decide(False, positive)

    def empty(self, positive: bool) -> Expr:
        return self.null if positive else self.filled

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

    def _not_in(self, values: Sequence[Scalar]) -> Expr:
        if self.name.endswith("]"):
            return all_of(f"{self.name} != {literal(each)}" for each in values)
        return f"{self.name} not in {list_literal(values)}" if values else True

    def _ordered(self, symbol: str, bound: Scalar, positive: bool) -> Expr:
        match = f"{self.name} {symbol} {literal(bound)}"
        return self.decide(match, positive, f"{self.name} {OPPOSITE[symbol]} {literal(bound)}")


class TextColumn(ColumnTarget):
    """A VARCHAR column."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return super().one_of(texts_among(values), positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if not isinstance(value, str):
            return self.decide(False, positive)
        return self._ordered(symbol, value, positive)

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
        if positive:
            return any_of([self.null, f'{self.name} == ""'])
        return all_of([self.filled, f'{self.name} != ""'])


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
        return self._ordered(symbol, bound, positive)


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
        return self._ordered(symbol, bound, positive)


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
        if not accepted:
            return self.decide(False, positive)
        match = f"{self.name} == {literal(accepted[0])}"
        return self.decide(match, positive, f"{self.name} != {literal(accepted[0])}")


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
        length = f"array_length({self.name})"
        if positive:
            return any_of([self.null, f"{length} == 0"])
        return all_of([self.filled, f"{length} != 0"])

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.contains(values, every, positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        actual, wanted = f"array_length({self.name})", literal(length)
        return self.decide(f"{actual} == {wanted}", positive, f"{actual} != {wanted}")


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
    length = f"array_length({target.name})"
    if engine.has_negation:
        target.null = any_of([target.null, f"{length} <= {position}"])
        target.filled = negated(target.null)
    else:  # and lengths compare by == and != only
        target.null = any_of(f"{length} == {shorter}" for shorter in range(position + 1))
        target.filled = all_of(f"{length} != {shorter}" for shorter in range(position + 1))
    target.name += f"[{position}]"
    return target
