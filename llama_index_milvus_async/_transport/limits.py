"""Bounds of one request, each with its reason."""

from __future__ import annotations

#: Most bytes of one insert, estimated. Far below the 64 MiB that a server takes: the request is
#: built and sent in one piece, for which the event loop stands still.
MAX_INSERT_BYTES = 2**19
#: Most vectors of one search. More gain nothing on a server of two cores, and an exhaustive search
#: over 100,000 rows takes 10 ms for each.
MAX_SEARCH_VECTORS = 250
#: Most hits of one search that a caller has put together: where the size of hits is not known, no
#: response should be near what a server sends.
MAX_SEARCH_HITS = 2_000
#: Most vectors of one search of Milvus Lite, which takes the same time over unflushed rows for one
#: vector as for many, and is slower where searches overlap than one after the other.
MAX_LITE_SEARCH_VECTORS = 1_000
#: Most bytes of a search's response, as far as earlier responses let them be foreseen: reading
#: them holds the event loop, and a server sends 512 MiB at most.
MAX_RESPONSE_BYTES = 16 * 2**20
#: Bytes of a hit that are assumed before the first response.
FIRST_HIT_BYTES = 8 * 2**10
#: Most texts of one call of a sparse encoder, so that queries need not wait long behind documents.
MAX_ENCODED = 100
#: Most ids of one expression, whose cost grows faster than their number.
MAX_IDS = 1_000
#: Most bytes of rows that wait on one event loop; calls beyond it wait before they queue.
MAX_QUEUED_BYTES = 64 * 2**20
#: Most rows of a read with a limit that a server gives
#: (https://milvus.io/docs/limitations.md#Search-limits).
MAX_ROWS = 16_384
