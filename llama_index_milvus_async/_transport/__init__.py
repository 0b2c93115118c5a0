"""Clients of Milvus, deadlines, attempts, and which calls share an RPC."""
