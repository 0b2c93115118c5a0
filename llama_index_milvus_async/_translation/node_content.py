"""Serialized nodes and metadata that are larger than Milvus allows.

A node whose JSON is too large is stored compressed: as the text `zlib:`, with which no JSON begins,
and the base64 of what zlib makes of it. `base64 -d | pigz -dz` reads what follows the colon.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from .node_json import dumps
from .plain_json import relationship_name

_PREFIX = "zlib:"
#: For texts, and for many ids and hashes, which the second makes an eighth smaller.
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED)
#: The largest JSON of a node that is compressed, or read from a compressed one. A row is data from
#: outside, and 64 KiB of it may claim to be 50 MB.
MAX_NODE_BYTES = 8 * 2**20
#: Where the filterable copy of metadata is too large, filters see this much of a text.
MAX_COPIED_TEXT = 1_024


def compressed(content: bytes) -> str | None:
    """Compress a serialized node; `None` where it is too large for that."""
    if len(content) > MAX_NODE_BYTES:
        return None
    packed = min((_deflated(content, strategy) for strategy in _STRATEGIES), key=len)
    return _PREFIX + base64.b64encode(packed).decode()


def _deflated(content: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(9, strategy=strategy)
    return packer.compress(content) + packer.flush()


def expanded(content: str) -> str | bytes:
    """The JSON of a serialized node that may be compressed.

    Raises:
        ValueError: It is not what `compressed` has made.
    """
    if not content.startswith(_PREFIX):
        return content
    reader = zlib.decompressobj()
    try:
        packed = base64.b64decode(content[len(_PREFIX) :], validate=True)
        node = reader.decompress(packed, MAX_NODE_BYTES)
    except zlib.error as error:
        raise ValueError(f"it is not compressed by zlib: {error}") from None
    if not reader.eof:
        raise ValueError(f"it is cut off, or has more than {MAX_NODE_BYTES} bytes")
    return node


def shortened(value: Any) -> Any:
    """JSON with its texts cut, those in lists and mappings as well."""
    if isinstance(value, str):
        return value[:MAX_COPIED_TEXT]
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shortened(inner) for inner in value]
    return value


def largest_part(
    content: bytes, *, metadata_only: bool = False, beside: Mapping[str, Any] | None = None
) -> str:
    """Name the largest part of a node with its size: `the metadata key 'a' (70,000 bytes)`.

    Args:
        content: The serialized node.
        metadata_only: Leave out its other fields.
        beside: What else is to be looked at, by its name.
    """
    parts = [*(beside or {}).items(), *_parts(json.loads(content), metadata_only)]
    sizes = {what: len(dumps(part)) for what, part in parts}
    largest = max(sizes, key=lambda what: sizes[what])
    return f"{largest} ({sizes[largest]:,} bytes)"


def _parts(node: dict[str, Any], metadata_only: bool) -> Iterator[tuple[str, Any]]:
    for key, value in node["metadata"].items():
        yield f"the metadata key {key!r}", value
    if metadata_only:
        return
    for kind, related in node["relationships"].items():
        yield f"the relationship {relationship_name(kind)}", related
    for field, value in node.items():
        if isinstance(value, dict) and field not in ("metadata", "relationships"):
            yield from ((f"the field {field}.{key}", inner) for key, inner in value.items())
        elif not isinstance(value, dict):
            yield f"the field {field}", value
