"""Tests; start with README.md here.

pymilvus reads ``MILVUS_URI`` when it is imported, and refuses the path of a ``.db`` file in it. The
tests use the same name for the server to run against, so it leaves the environment first of all.
"""

import os

MILVUS_URI = os.environ.pop("MILVUS_URI", "")
MILVUS_TOKEN = os.environ.pop("MILVUS_TOKEN", "")
