#!/usr/bin/env python3
"""Writes a bf16 GGUF of a Llama config's shape with made-up weights: what bench/cpu.sh gives to
llama.cpp, as speed does not depend on values.

    bench/llama_gguf.py MODEL_DIR OUT.gguf

SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import random
import struct
import sys

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
TYPE_F32, TYPE_BF16, ALIGN = 0, 30, 32


def string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def entry(key, kind, value):
    if kind == STRING:
        body = string(value)
    elif kind == ARRAY:
        of, items = value
        parts = map(string, items) if of == STRING else [
            struct.pack("<f" if of == F32 else "<i", v) for v in items]
        body = struct.pack("<IQ", of, len(items)) + b"".join(parts)
    else:
        body = struct.pack("<f" if kind == F32 else "<I", value)
    return string(key) + struct.pack("<I", kind) + body


def metadata(c):
    vocab = c["vocab_size"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    pieces += [f"t{i}" for i in range(vocab - len(pieces))]
    p = "llama."
    return [
        ("general.architecture", STRING, "llama"), (p + "context_length", U32, 32768),
        (p + "embedding_length", U32, c["hidden_size"]),
        (p + "block_count", U32, c["num_hidden_layers"]),
        (p + "feed_forward_length", U32, c["intermediate_size"]),
        (p + "attention.head_count", U32, c["num_attention_heads"]),
        (p + "attention.head_count_kv", U32, c["num_key_value_heads"]),
        (p + "attention.layer_norm_rms_epsilon", F32, c["rms_norm_eps"]),
        (p + "rope.dimension_count", U32, c["head_dim"]),
        (p + "rope.freq_base", F32, c["rope_theta"]), (p + "vocab_size", U32, vocab),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, pieces)),
        ("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * vocab)),
        ("tokenizer.ggml.token_type", ARRAY,
         (I32, [2, 3, 3] + [6] * 256 + [1] * (vocab - 259))),
        ("tokenizer.ggml.bos_token_id", U32, 1), ("tokenizer.ggml.eos_token_id", U32, 2),
    ]


def tensors(c):
    h, ffn = c["hidden_size"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    yield "token_embd.weight", (h, c["vocab_size"])
    yield "output_norm.weight", (h,)
    for i in range(c["num_hidden_layers"]):
        for name, shape in (("attn_norm", (h,)), ("attn_q", (h, q)), ("attn_k", (h, kv)),
                            ("attn_v", (h, kv)), ("attn_output", (q, h)), ("ffn_norm", (h,)),
                            ("ffn_gate", (h, ffn)), ("ffn_up", (h, ffn)), ("ffn_down", (ffn, h))):
            yield f"blk.{i}.{name}.weight", shape


def size(shape):
    n = 1
    for d in shape:
        n *= d
    return n * (4 if len(shape) == 1 else 2)


def main():
    with open(os.path.join(sys.argv[1], "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    meta, names = metadata(config), list(tensors(config))
    rng = random.Random(1)
    # bf16 of about 0.008 to 0.03 with either sign; one block of them again and again
    block = b"".join(struct.pack("<H", rng.getrandbits(1) << 15 | 0x3C00 + rng.getrandbits(8))
                     for _ in range(1 << 20))
    head = struct.pack("<IIQQ", 0x46554747, 3, len(names), len(meta))
    head += b"".join(entry(*m) for m in meta)
    at = 0
    for name, shape in names:
        head += string(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", d) for d in shape)
        head += struct.pack("<IQ", TYPE_F32 if len(shape) == 1 else TYPE_BF16, at)
        at += (size(shape) + ALIGN - 1) // ALIGN * ALIGN
    with open(sys.argv[2], "wb") as out:
        out.write(head + b"\0" * (-len(head) % ALIGN))
        for _, shape in names:
            left = size(shape)
            if len(shape) == 1:
                out.write(struct.pack("<f", 1.0) * shape[0])
                left = 0
            while left:
                left -= out.write(block[:min(left, len(block))])
            out.write(b"\0" * (-out.tell() % ALIGN))


main()
