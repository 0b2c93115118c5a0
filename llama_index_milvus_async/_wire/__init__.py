"""The only package that knows protobuf and pymilvus' inside."""
