"""How fast the store is, beside the plugin it replaces and the bare client; see README.md."""

import tests  # noqa: F401 - first: it takes MILVUS_URI out of the environment, which pymilvus reads
