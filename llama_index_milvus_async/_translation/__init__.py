"""Between LlamaIndex and Milvus: nodes and rows, filters and expressions, schemas. Pure."""
