"""Primitives for asyncio and threads. They know neither Milvus nor LlamaIndex."""
