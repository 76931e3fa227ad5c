#!/usr/bin/env python3
"""A Llama checkpoint of a config's shape with made-up bfloat16 weights, to measure loading with.

    bench/make_weights.py FOLDER_WITH_CONFIG OUT_FOLDER

SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import random
import shutil
import struct
import sys


def shapes(c):
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    head = c.get("head_dim") or hidden // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
        for name, rows, cols in (("self_attn.q", q, hidden), ("self_attn.k", kv, hidden),
                                 ("self_attn.v", kv, hidden), ("self_attn.o", hidden, q),
                                 ("mlp.gate", ffn, hidden), ("mlp.up", ffn, hidden),
                                 ("mlp.down", hidden, ffn)):
            yield f"{at}{name}_proj.weight", (rows, cols)
    yield "model.norm.weight", (hidden,)
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", (c["vocab_size"], hidden)


def main():
    folder, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    shutil.copy(os.path.join(folder, "config.json"), out)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    header, at = {}, 0
    for name, shape in shapes(config):
        n = 2
        for d in shape:
            n *= d
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # 0x3C..: values of about 0.01, of both signs
    rng = random.Random(0)
    piece = b"".join(struct.pack("<H", rng.choice((0x3C00, 0xBC00)) + rng.randrange(128))
                     for _ in range(1 << 19))
    with open(os.path.join(out, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for left in range(at, 0, -len(piece)):
            f.write(piece[:left])
    print(f"{at / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
