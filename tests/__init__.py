"""Tests; start with README.md here.

pymilvus reads ``MILVUS_URI`` when it is imported, and refuses the path of a ``.db`` file in it. The
tests use the same name for the server to run against, so it is emptied first of all; were it
removed, pymilvus would take it from a file ``.env``.
"""

import os

MILVUS_URI = os.environ.get("MILVUS_URI", "")
os.environ["MILVUS_URI"] = ""
MILVUS_TOKEN = os.environ.pop("MILVUS_TOKEN", "")
