"""What the package says: every message of `make messages` is provoked by the call beside it."""

from __future__ import annotations

import re

import pytest

from llama_index_milvus_async import errors
from tests.messages_page import Message, provoke, templates

#: Words that STYLE asks for in another form, and texts that show how a message was put together.
UGLY = re.compile(
    r"\ba (INT|int)\b|DataType\.\[|\bnone is no\b|\btexts? of type\b|  (?!\()|<class|object at 0x"
)


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    return [message for section in provoke().values() for message in section]


def test_every_call_has_a_message_of_the_package(messages: list[Message]) -> None:
    silent = [message.call for message in messages if not message.text]
    assert silent == []
    known = {*errors.__all__, "WARNING"}
    assert [message for message in messages if message.kind not in known] == []


def test_messages_read_well(messages: list[Message]) -> None:
    assert [m.text for m in messages if UGLY.search(m.text.partition("\n")[0])] == []


def test_the_texts_of_the_source_are_found() -> None:
    found = templates()
    assert "the store is closed; build a new one to go on" not in found  # a constant, not a literal
    assert any("uri is" in text for text in found["_checks.py"])
    assert any("knows" in text or "has no logins" in text for text in found["_transport/lite.py"])
