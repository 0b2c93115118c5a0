"""Values in JSON, in the dynamic field or in a JSON column, in the logic of each engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..errors import FilterError
from .engine import Engine
from .expressions import (
    Expr,
    Scalar,
    all_of,
    any_of,
    can_find,
    contains,
    contains_insensitive,
    is_text,
    list_literal,
    literal,
    negated,
    without_negation,
)
from .targets import COMPARE, Target, call_contains, is_large, numbers_among, texts_among, whole

#: Every number of a row is at least this.
_LEAST_DOUBLE = "-1.7976931348623157e+308"


class Json(Target):
    """A value in the dynamic field or a JSON column, in the two-valued logic before Milvus 2.6.

    Python says that `True == 1`, Milvus does not: a number that equals a boolean, or is less
    than one, brings the boolean along.
    """

    def __init__(
        self, text: str, engine: Engine, *, column: str, has_another_reading: bool
    ) -> None:
        """Remember the target.

        Args:
            text: The value, as it is written in an expression.
            engine: What the engine can do.
            column: The column that it is in.
            has_another_reading: Whether its key is read in another way where a row has none.
        """
        self.text = text
        self.column = column
        self.engine = engine
        self.bare = not text.startswith("$meta")
        self.nested = text.endswith("]")
        self.has_another_reading = has_another_reading

    # True for values of one kind, not true for all others. `number` needs only one comparison,
    # since JSON has no infinities. A list is compared by `!=` with lists only.

    @property
    def exists(self) -> str:
        return f"(exists {self.text})"

    @property
    def kinds(self) -> dict[str, Expr]:
        return {
            "number": f"{self.text} >= {_LEAST_DOUBLE}",
            "boolean": f"({self.text} == true or {self.text} == false)",
            "text": is_text(self.engine, self.text),
            "list": f"array_length({self.text}) != 0",
        }

    @property
    def filled(self) -> Expr:
        return any_of(
            [f'{self.text} > ""', *(self.kinds[k] for k in ("number", "boolean", "list"))]
        )

    def present(self, positive: bool) -> Expr:
        # `exists` is true for null before 2.6; no comparison is.
        present = any_of([*self.kinds.values(), f"{self.text} != [0]"])
        return present if positive else negated(present)

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        """Match the rows for which one of the cases is true.

        Args:
            cases: For each kind of value that can match, what is true for those that do.
            positive: `False` for the rows that do not match.
        """
        match = any_of(cases.values())
        return match if positive else negated(match)

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        texts, numbers = texts_among(values), numbers_among(values)
        cases = {
            "text": self._equal(texts),
            "number": self._equal_numbers(numbers),
            "boolean": self._booleans(lambda each: each in numbers),
        }
        return self.decide(cases, positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if isinstance(value, str):
            return self.decide({"text": f"{self.text} {symbol} {literal(value)}"}, positive)
        cases = {
            "number": f"{self.text} {symbol} {literal(whole(value))}",
            "boolean": self._booleans(lambda each: COMPARE[symbol](each, value)),
        }
        return self.decide(cases, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        if not values:
            return self.present(positive) if every else not positive
        texts = texts_among(values)
        join = all_of if every else any_of
        if every and len(texts) < len(values):
            in_text: Expr = False
        elif not all(can_find(self.engine, each) for each in texts):
            # Undecidable, so that rows with text match neither this nor its negation. Lists, for
            # which the operator is meant, are not affected.
            in_text = False if positive else self.kinds["text"]
        else:
            in_text = join(contains(self.engine, self.text, each) for each in texts)
        return self.decide(
            {"list": self._elements(values, every, positive), "text": in_text}, positive
        )

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        test = contains_insensitive if insensitive else contains
        return self.decide({"text": test(self.engine, self.text, needle)}, positive)

    def empty(self, positive: bool) -> Expr:
        return negated(self.filled) if positive else self.filled

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.decide({"list": self._elements(values, every, positive)}, positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self.decide({"list": self._length(length, positive)}, positive)

    def _equal(self, values: Sequence[Scalar]) -> Expr:
        if len(values) > 1:
            return f"{self.text} in {list_literal(values)}"
        return f"{self.text} == {literal(values[0])}" if values else False

    def _equal_numbers(self, numbers: Sequence[int | float]) -> Expr:
        whole = [each for each in numbers if isinstance(each, int)]
        broken = [each for each in numbers if not isinstance(each, int)]
        return any_of([self._equal(whole), self._equal(broken)])

    def _booleans(self, accepts: Callable[[bool], bool]) -> Expr:
        return any_of(f"{self.text} == {literal(each)}" for each in (True, False) if accepts(each))

    def _elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        """Test a list for elements.

        The types go apart: lists of several types are an error. `json_contains(k, 1)` does not
        find 1.0, `json_contains(k, 1.0)` finds both.
        """
        numbers = dict.fromkeys(numbers_among(values))
        doubles = [float(n) for n in numbers if n not in (0, 1) and not is_large(n)]
        large = [n for n in numbers if is_large(n)]
        groups: list[Sequence[Scalar]] = [texts_among(values), doubles, large]
        tests = [
            call_contains("json_contains", self.text, group, every) for group in groups if group
        ]
        for number in numbers:
            if number in (0, 1):
                spellings = (float(number), bool(number))
                tests.append(
                    any_of(f"json_contains({self.text}, {literal(each)})" for each in spellings)
                )
        return (all_of if every else any_of)(tests)

    def _length(self, length: int, positive: bool) -> Expr:
        test = f"array_length({self.text}) == {literal(length)}"
        # 0 is also the "length" of what is not a list.
        return test if length else all_of([f"{self.text} != [0]", test])


class JsonOfThreeValues(Json):
    """A value in JSON where comparisons with values of another kind can be unknown: Milvus 2.6.

    Right in the two-valued logic as well, which 2.6 had at first: what does not match is spelled
    out for each kind of value, from expressions that are true for nothing else.
    """

    def present(self, positive: bool) -> Expr:
        return self.exists if positive else negated(self.exists)

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        if positive:
            return any_of(cases.values())
        rest = [
            all_of([test, negated(cases.get(kind, False))]) for kind, test in self.kinds.items()
        ]
        return any_of([self.present(False), *rest])

    def empty(self, positive: bool) -> Expr:
        return any_of([self.present(False), f'{self.text} == ""']) if positive else self.filled

    def has_length(self, length: int, positive: bool) -> Expr:
        if length == 0 and not positive:
            raise FilterError(
                f"{self.engine} does not tell an empty list from a missing key, so that a "
                "length other than 0 cannot be asked for; ask for what the list contains"
            )
        return super().has_length(length, positive)


class JsonInLite(Json):
    """A value in JSON in Milvus Lite.

    Lite compares as Python does: booleans are numbers, `==` decides between all values that are
    not null, and what Python refuses to compare is unknown. `in` is not used: it needs a bare
    name, and a list or mapping in any row under that key makes the whole query fail ("unhashable
    type: 'list'"). `json_contains` needs a bare name too, `array_length` one without a path.
    """

    @property
    def kinds(self) -> dict[str, Expr]:
        # As in Python, `"x" * 0` is "" and `[1] * 0` is [], which equal no number.
        number = f"{self.text} * 0 == 0"
        text = f'{self.text} like "%"'
        return {"number": number, "text": text, "list": all_of([negated(number), negated(text)])}

    def present(self, positive: bool) -> Expr:
        return self.exists if positive else negated(self.exists)

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        match = any_of(cases.values())
        return match if positive else any_of([self.present(False), negated(match)])

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        test = super().ordered(symbol, value, positive)
        if positive:
            return test
        comparable = self.kinds["text" if isinstance(value, str) else "number"]
        return any_of([test, negated(comparable)])

    def empty(self, positive: bool) -> Expr:
        zero = f"{self.text} * 0"
        if positive:
            nothing = all_of([f"{zero} == {self.text}", f"{self.text} != 0"])
            return any_of([self.present(False), nothing])
        return any_of([f"{zero} != {self.text}", f"{self.text} == 0"])

    def _equal(self, values: Sequence[Scalar]) -> Expr:
        return any_of(f"{self.text} == {literal(each)}" for each in values)

    def _booleans(self, accepts: Callable[[bool], bool]) -> Expr:
        return False

    def _elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        if not self.bare and self.has_another_reading:
            # Undecidable; but it is the path that is meant by such a key and lists.
            return False if positive else self.kinds["list"]
        if not self.bare:
            raise FilterError(
                f"{self.engine} looks into lists only under keys that are plain names (letters, "
                "digits and underscores, no keyword); rename the key, or use Milvus"
            )
        groups: list[Sequence[Scalar]] = [texts_among(values), numbers_among(values)]
        calls = [
            call_contains("json_contains", self.text, group, every) for group in groups if group
        ]
        return self._no_text((all_of if every else any_of)(calls))

    def _length(self, length: int, positive: bool) -> Expr:
        if length == 0:
            # An empty list is what times 0 stays itself, and is neither 0 nor "".
            zero = [f"{self.text} * 0 == {self.text}", f"{self.text} != 0", f'{self.text} != ""']
            return all_of(zero)
        if not self.bare and self.has_another_reading:
            return False if positive else self.kinds["list"]
        if not self.bare or self.nested:
            raise FilterError(
                f"{self.engine} counts elements only of lists at the top of the metadata, under "
                "keys that are plain names; Milvus can"
            )
        return self._no_text(f"array_length({self.text}) == {literal(length)}")

    def _no_text(self, test: Expr) -> Expr:
        """Keep to lists: Lite takes the text '["a"]' for one."""
        return all_of([test, negated(self.kinds["text"])])


class JsonInLite2(Json):
    """A value in JSON in Milvus Lite 2, which has the two-valued logic of Milvus 2.5.

    Its expressions know no `not` and no `exists`. `!=` and `not in` are true for whatever is not
    equal, values of other kinds and missing ones among them; there is no opposite of the rest.
    """

    @property
    def exists(self) -> str:
        raise without_negation(self.engine, "that have no value under a key")

    def present(self, positive: bool) -> Expr:
        raise without_negation(self.engine, "that have no value under a key")

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        match = any_of(cases.values())
        if positive or isinstance(match, bool):
            return match if positive else negated(match)
        raise without_negation(self.engine, "that do not match")

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        if positive:
            return super().one_of(values, positive)
        texts, numbers = texts_among(values), numbers_among(values)
        whole = [each for each in numbers if isinstance(each, int)]
        broken = [each for each in numbers if not isinstance(each, int)]
        booleans = [each for each in (True, False) if each in numbers]
        kinds: list[Sequence[Scalar]] = [texts, whole, broken, booleans]  # no list has two of them
        return all_of(f"{self.text} not in {list_literal(kind)}" for kind in kinds if kind)

    def empty(self, positive: bool) -> Expr:
        if positive:
            raise without_negation(self.engine, "that have no value under a key")
        return self.filled

    def has_length(self, length: int, positive: bool) -> Expr:
        if length == 0:
            # It is also the "length" of what is not a list.
            raise without_negation(self.engine, "with an empty list from those without a list")
        return f"array_length({self.text}) {'==' if positive else '!='} {literal(length)}"


class FirstOf(Target):
    """One of two values: the first in rows that have it, else the second.

    A key with dots is the literal key, else a path into nested metadata; a metadata key whose
    name a column has is the metadata of the rows that have it, else the column.
    """

    def __init__(
        self, has_first: str, first: Target, second: Target, *, lacks_first: str = ""
    ) -> None:
        """Remember the targets.

        Args:
            has_first: An expression in parentheses, true where a row has the first, else false.
            first: The first.
            second: The second.
            lacks_first: The opposite of `has_first`, where the engine cannot negate it.
        """
        self.has_first = has_first
        self.lacks_first = lacks_first or negated(has_first)
        self.first = first
        self.second = second

    @property
    def exists(self) -> Expr | None:
        second = self.second.exists
        return None if second is None else any_of([self.has_first, second])

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self._choose(lambda each: each.one_of(values, positive), absent=not positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return self._choose(lambda each: each.ordered(symbol, value, positive), absent=not positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self._choose(lambda each: each.contains(values, every, positive), not positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        return self._choose(lambda each: each.has_text(needle, insensitive, positive), not positive)

    def empty(self, positive: bool) -> Expr:
        return self._choose(lambda each: each.empty(positive), absent=positive)

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self._choose(lambda each: each.has_elements(values, every, positive), not positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self._choose(lambda each: each.has_length(length, positive), not positive)

    def _choose(self, test: Callable[[Target], Expr], absent: bool) -> Expr:
        """Test one of the two.

        Args:
            test: Builds the test.
            absent: Whether the test is true where there is no value.
        """
        first = test(self.first)
        if absent:
            first = all_of([self.has_first, first])
        return any_of([first, all_of([self.lacks_first, test(self.second)])])


def is_path(key: str) -> bool:
    """Whether a key can be read as steps into nested metadata; the engines refuse empty steps."""
    return "." in key and all(key.split("."))
