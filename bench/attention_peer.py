"""Attention of cuDNN and FlashAttention-2 through torch, on the shapes of tests/gpu/kernels.c: the yardstick.

    python3 bench/attention_peer.py
SPDX-License-Identifier: Apache-2.0"""
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 32, 8, 128


def median_us(fn, repeats=30):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for _ in range(3):
        fn()
    events[0].record()
    for e in events[1:]:
        fn()
        e.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:])) * 1000


def prefill(backend, n, length):
    def make(heads):
        return torch.randn(n, heads, length, DIM, device="cuda", dtype=torch.bfloat16)

    # K and V of all heads: cuDNN takes groups only in some versions, and the rate is of operations
    q, k, v = make(HEADS), make(HEADS), make(HEADS)
    with sdpa_kernel(backend):
        us = median_us(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    flops = n * (length * (length + 1) / 2) * HEADS * DIM * 4
    print(f"{backend.name:20} {n:3} x q {length:5}: {us:8.1f} us, {flops / us / 1e6:6.0f} TFLOP/s", flush=True)


print("torch", torch.__version__, "on", torch.cuda.get_device_name())
for kind in SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION:
    for shape in (8, 2048), (1, 512), (1, 8192), (1, 16384):
        prefill(kind, *shape)
