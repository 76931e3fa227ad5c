#!/usr/bin/env python3
"""A peer on the same GPU: transformers' continuous batching (what generate_batch runs on) over the
first requests of a trace, all at once, with a model of the same shape and random weights in bf16.

    bench/peer.py FOLDER_WITH_CONFIG TRACE.csv REQUESTS SECONDS

Its output tokens are counted until the last request has ended or SECONDS have passed since the first
was handed over; loading and warm-up are not in it. Prompts come first, so the best 20 seconds in a
row are given beside the mean. The trace has columns input_tokens and
output_tokens; token ids are made up.

SPDX-License-Identifier: Apache-2.0
"""
import csv
import os
import random
import sys
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig


def make_model(folder, device):
    config = AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16,
                                                 attn_implementation="sdpa")
    return model.to(device).eval()


def read_trace(path, n, vocab):
    rng = random.Random(0)
    with open(path, encoding="utf-8") as f:
        rows = [r for _, r in zip(range(n), csv.DictReader(f))]
    return [([rng.randrange(vocab) for _ in range(int(r["input_tokens"]))], int(r["output_tokens"]))
            for r in rows]


def run(model, requests, seconds):
    """Output tokens, seconds, requests that ended."""
    wanted = GenerationConfig(do_sample=False, max_new_tokens=max(o for _, o in requests),
                              eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(generation_config=wanted, block=False,
                                                   warmup=True) as manager:
        so_far, ended, start, seen = {}, 0, time.perf_counter(), [(0, 0)]
        for tokens, n_out in requests:
            manager.add_request(tokens, max_new_tokens=n_out, streaming=True, eos_token_id=-1)
        while ended < len(requests) and time.perf_counter() - start < seconds:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise SystemExit("the peer's thread has ended")
                continue
            if result.error:
                raise SystemExit(f"the peer failed: {result.error}")
            so_far[result.request_id] = len(result.generated_tokens)
            ended += result.is_finished()
            if time.perf_counter() - start - seen[-1][0] > 1:
                seen.append((time.perf_counter() - start, sum(so_far.values())))
        took = time.perf_counter() - start
        seen.append((took, sum(so_far.values())))
        best = max((n - m) / (t - u) for t, n in seen for u, m in seen if t - u > min(20, took / 2))
        print(f"peer {sum(so_far.values())} {took:.3f} {best:.1f} {ended} {len(requests)} "
              f"transformers-{transformers.__version__} torch-{torch.__version__}", flush=True)
        os._exit(0)  # not to wait for what is under way


def main():
    folder, trace, n, seconds = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    model = make_model(folder, device)
    print(f"model made in {time.perf_counter() - start:.1f} s", flush=True)
    run(model, read_trace(trace, int(n), model.config.vocab_size), float(seconds))


if __name__ == "__main__":
    main()
