#!/usr/bin/env python3
"""Merges what bench/h200.sh measured into a results file, and prints its rows.

    bench/h200_report.py RAW_DIR TARGET.json COMMIT

SPDX-License-Identifier: Apache-2.0
"""
import csv
import datetime
import json
import os
import re
import subprocess
import sys

# Llama-3.1-8B: what the products of a step read, and what a token's KV takes.
HIDDEN, FFN, LAYERS, VOCAB, KV_WIDTH = 4096, 14336, 32, 128256, 1024
PRODUCTS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH + 3 * HIDDEN * FFN)
WEIGHTS = 2 * (PRODUCTS + VOCAB * HIDDEN)
KV_TOKEN = LAYERS * 2 * KV_WIDTH * 2


def read(folder, name):
    path = os.path.join(folder, name)
    return open(path, encoding="utf-8").read() if os.path.exists(path) else ""


def row(name, value, goal, better, unit):
    return {"name": name, "value": round(value, 3), "goal": goal, "better": better, "unit": unit}


def ceilings(folder):
    found = re.search(r"copy ([\d.]+) TB/s, bf16 product (\d+) TFLOP/s", read(folder, "kernels.txt"))
    if not found:
        return {}
    return {"copy_tb_s": float(found[1]), "bf16_tflop_s": float(found[2])}


def kernel_rows(folder):
    rows = []
    for m in re.finditer(r"(\w+)\s+m\s+(\d+): own\s+([\d.]+) us,\s+(\d+) % of the copy rate; cuBLASLt"
                         r"\s+([\d.]+) us", read(folder, "narrow.txt")):
        rows.append(row(f"product {m[1]}, {m[2]} rows: share of the copy rate", float(m[4]), 90,
                        "higher", "%"))
    for m in re.finditer(r"attention\s+(\d+) x q\s+(\d+) kv\s+(\d+):\s+([\d.]+) us,\s+(\d+) TFLOP/s, "
                         r"KV bytes at\s+(\d+) %", read(folder, "kernels.txt")):
        if m[2] == "1":
            rows.append(row(f"decode attention, {m[1]} x {m[3]}: share of the copy rate",
                            float(m[6]), 88, "higher", "%"))
        else:
            rows.append(row(f"prefill attention, {m[1]} x {m[2]}", float(m[5]), 495, "higher",
                            "TFLOP/s"))
    return rows


def step_rows(folder, top):
    rows, text = [], read(folder, "steps.txt")
    for m in re.finditer(r"step (\d+) ([\d.e-]+) ([\d.e-]+)", text):
        batch, seconds = int(m[1]), (float(m[3]) - float(m[2])) / 64
        rows.append(row(f"decode step, batch {batch}, context 1k", seconds * 1e3,
                        3.83 if batch == 1 else None, "lower", "ms"))
        if top:
            kv = batch * (1024 + 48) * KV_TOKEN
            floor = (WEIGHTS + kv) / (top["copy_tb_s"] * 1e12)
            rows.append(row(f"decode step, batch {batch}: share of its bytes' floor",
                            100 * floor / seconds, 90 if batch == 1 else 80, "higher", "%"))
    m = re.search(r"prefill 8 2048 ([\d.e-]+)", text)
    if m:
        rows.append(row("prefill 8 x 2,048", float(m[1]) * 1e3, None, "lower", "ms"))
        if top:
            flops = 2.0 * PRODUCTS * 8 * 2048
            rows.append(row("prefill 8 x 2,048: products' operations over the bf16 product rate",
                            100 * flops / (top["bf16_tflop_s"] * 1e12) / float(m[1]), 75, "higher",
                            "%"))
    return rows


def step_bytes(name, context):
    """What a decode step of bench/configs/`name` reads at batch 1, and whether it has experts."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "configs", name, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    head = c.get("head_dim", hidden // heads)
    q, kv = heads * head, c["num_key_value_heads"] * head
    ffn, router = c["intermediate_size"], 0
    experts = c.get("num_experts", c.get("num_local_experts"))
    if experts:
        ffn = c["num_experts_per_tok"] * c.get("moe_intermediate_size", ffn)
        router = experts * hidden
    layers, weights = c["num_hidden_layers"], hidden * (2 * q + 2 * kv) + 3 * hidden * ffn + router
    seen = [context] * layers
    if c.get("sliding_window"):
        every = 2 if c["model_type"] == "gemma2" else 1
        seen = [min(context, c["sliding_window"]) if i % every == 0 else context
                for i in range(layers)]
    return 2 * (layers * weights + c["vocab_size"] * hidden + 2 * kv * sum(seen)), bool(experts)


def model_rows(folder, top):
    rows = []
    for m in re.finditer(r"model (\S+) ([\d.e-]+) ([\d.e-]+) (\d+) (\d+)", read(folder, "models.txt")):
        seconds = (float(m[3]) - float(m[2])) / 64
        rows.append(row(f"{m[1]}: decode step, batch 1, context 1k", seconds * 1e3, None, "lower",
                        "ms"))
        rows.append(row(f"{m[1]}: memory in use, of the card's", 100 * float(m[4]) / float(m[5]),
                        None, "lower", "%"))
        if top:
            n, experts = step_bytes(m[1], 1024 + 48)
            rows.append(row(f"{m[1]}: decode step, share of its bytes' floor",
                            100 * n / (top["copy_tb_s"] * 1e12) / seconds, 75 if experts else 85,
                            "higher", "%"))
    return rows


def trace_rows(folder, top):
    text = read(folder, "throughput.txt")
    m = re.search(r"Throughput: ([\d.]+) requests/s, ([\d.]+) total tokens/s, ([\d.]+) output", text)
    if not m:
        return []
    with open(os.path.join(folder, "trace.csv"), encoding="utf-8") as f:
        pairs = [(int(r["input_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(f)]
    seconds = len(pairs) / float(m[1])
    rows = [row("trace, 1,000 requests at once", seconds, None, "lower", "s"),
            row("trace: output", float(m[3]), None, "higher", "tokens/s")]
    if top:
        work = sum(i * 13.96e9 + o * 15.0e9 for i, o in pairs) / (top["bf16_tflop_s"] * 1e12)
        work += sum(2.0 * i * i * LAYERS * HIDDEN for i, _ in pairs) / 550e12
        work += sum(o * (i + o / 2) * KV_TOKEN for i, o in pairs) / (top["copy_tb_s"] * 1e12)
        rows.append(row("trace: time over the floor", seconds / work, 1.35, "lower", "x"))
    return rows


def fp8_rows(folder):
    found = {}
    for m in re.finditer(r"weights (\w+) step ([\d.e-]+) ([\d.e-]+) prefill ([\d.e-]+)",
                         read(folder, "fp8.txt")):
        found[m[1]] = (float(m[3]) - float(m[2])) / 64, float(m[4])
    if len(found) < 2:
        return []
    (step, prefill), (step8, prefill8) = found["none"], found["fp8"]
    return [row("decode step, batch 1, context 1k, FP8 weights", step8 * 1e3, None, "lower", "ms"),
            row("decode step, batch 1: FP8 weights against bf16", step / step8, 1.7, "higher", "x"),
            row("prefill 8 x 2,048, FP8 weights", prefill8 * 1e3, None, "lower", "ms"),
            row("prefill 8 x 2,048: FP8 weights against bf16", prefill / prefill8, 1.6, "higher",
                "x")]


# What TensorRT-LLM v1.0's published table has for this model in FP8 on one H200.
FIXED = {(128, 128): 27911, (128, 2048): 26221, (1000, 1000): 17744, (2048, 128): 3538,
         (2048, 2048): 12194}


def fixed_rows(folder):
    rows = []
    for m in re.finditer(r"fixed (\d+) (\d+) (\d+): .*?([\d.]+) output tokens/s",
                         read(folder, "fixed.txt")):
        shape = int(m[1]), int(m[2])
        rows.append(row(f"FP8 weights and KV, {m[3]} prompts of {shape[0]} with {shape[1]} answered",
                        float(m[4]), FIXED[shape], "higher", "tokens/s"))
    return rows


def main():
    folder, target, commit = sys.argv[1:]
    result = json.load(open(target)) if os.path.exists(target) else {"rows": [], "ceilings": {}}
    result["ceilings"].update(ceilings(folder))
    top = result["ceilings"]
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                          capture_output=True, text=True, check=False).stdout.strip()
    result.update(machine=name or "unknown", commit=commit,
                  date=datetime.date.today().isoformat())
    new = kernel_rows(folder) + step_rows(folder, top) + trace_rows(folder, top)
    new += fp8_rows(folder) + fixed_rows(folder) + model_rows(folder, top)
    for r in new:
        r["commit"] = commit
    names = {r["name"] for r in new}
    result["rows"] = [r for r in result["rows"] if r["name"] not in names] + new
    with open(target, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    for r in new:
        goal = "" if r["goal"] is None else f"   (goal {r['goal']})"
        print(f"{r['name']:66} {r['value']:10.2f} {r['unit']}{goal}")


if __name__ == "__main__":
    main()
