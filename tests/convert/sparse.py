"""Models whose weights are holes: as large as one likes, on the disk almost nothing."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import Qwen3Config

from megatron_vr.convert.maps import expected_tensors
from megatron_vr.models.architecture import read_architecture


def write_sparse(folder: Path, shards: int = 2) -> Path:
    """A Qwen3 of zeros in bfloat16: 18 layers of 64 MiB, an embedding and an output of 64 MiB."""
    config = Qwen3Config(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=8192,
        num_hidden_layers=18,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
    )
    config.save_pretrained(folder)
    shapes = list(expected_tensors(read_architecture(folder)).items())
    shard_of = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        entries, end = {}, 0
        for tensor, shape in shapes[number::shards]:
            elements = 1
            for size in shape:
                elements *= size
            begin, end = end, end + 2 * elements
            entries[tensor] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
            shard_of[tensor] = name
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with open(folder / name, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)
    index = {"metadata": {}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
