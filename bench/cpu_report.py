#!/usr/bin/env python3
"""Turns what bench/cpu.sh measured into bench/results/cpu.json and a table.

SPDX-License-Identifier: Apache-2.0
"""
import datetime
import json
import os
import re
import sys

LINEAR = re.compile(r"^(\w+)\s+(\d+) x (\d+)\s+M\s+(\d+)\s+([\d.]+) ms\s+([\d.]+) GB/s\s+([\d.]+) %"
                    r"\s+([\d.]+) G/s\s+([\d.]+) % of (\w+)")
ATTENTION = re.compile(r"^attention (\w+): (\d+) x (\d+), q_len (\d+): ([\d.]+) ms\s+([\d.]+) GB/s"
                       r"\s+([\d.]+) %\s+([\d.]+) G/s\s+([\d.]+) %")
# Weights of the matrices that one token meets in Llama-3.2-1B, without and with lm_head.
LAYERS = 16 * (3072 * 2048 + 2048 * 2048 + 3 * 8192 * 2048)
ALL = LAYERS + 128256 * 2048


def lines(folder, name, pattern):
    with open(os.path.join(folder, name + ".txt"), encoding="utf-8") as f:
        return [m.groups() for m in map(pattern.match, f) if m]


def mean_over_shapes(rows, m, column):
    """gate_up is two thirds of the MLP's weights, down one."""
    picked = {int(r[2]): float(r[column]) for r in rows if int(r[3]) == m}
    return (2 * picked[2048] + picked[8192]) / 3


def latency(folder, name):
    path = os.path.join(folder, name + ".json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as f:
        return min(json.load(f)["latencies"])


def main():
    folder, target, commit = sys.argv[1:4]
    with open(os.path.join(folder, "ceilings.json"), encoding="utf-8") as f:
        ceilings = json.load(f)
    rows = []

    def row(name, value, goal, unit, better="higher"):
        rows.append({"name": name, "value": None if value is None else round(value, 3),
                     "goal": goal, "better": better, "unit": unit})

    speed = {}
    for q, goal in (("bf16", 85), ("int8", 85), ("int4", 75)):
        r = lines(folder, q, LINEAR)
        speed[q] = mean_over_shapes(r, 512, 7)
        if q == "bf16":
            row("prefill 512, bf16: matrix products", mean_over_shapes(r, 512, 8), 60, "% of peak")
            row("products at M = 32 against M = 1, bf16",
                mean_over_shapes(r, 32, 4) / mean_over_shapes(r, 1, 4), 1.5, "x", "lower")
        row(f"decode batch 1, {q}: weights read", mean_over_shapes(r, 1, 6), goal, "% of bandwidth")
        row(f"decode batch 1, {q}: rate", mean_over_shapes(r, 1, 5), None, "GB/s")
        row(f"prefill 512, {q}: rate", speed[q], None, "G/s")
    row("prefill int8 against bf16: products", speed["int8"] / speed["bf16"], 1.5, "x")
    for a in lines(folder, "attention", ATTENTION):
        if a[0] == "bf16" and a[1:4] == ("32", "2048", "1"):
            row("attention decode, 32 x 2048: KV read", float(a[6]), 75, "% of bandwidth")
    for q in ("bf16", "int8", "int4"):
        prefill = latency(folder, "prefill-" + q)
        start, decode = latency(folder, "start-" + q), latency(folder, "decode-" + q)
        if prefill is None:
            continue
        peak = ceilings["int8_gop_s" if q != "bf16" else "bf16_gflop_s"] * 1e9
        row(f"prefill 512, {q}: whole step", 2 * LAYERS * 512 / prefill / peak * 100,
            50 if q == "bf16" else None, "% of peak")
        row(f"prefill 512, {q}: tokens", 512 / prefill, None, "tokens/s")
        step = (decode - start) / 32
        row(f"decode batch 1, {q}: tokens", 1 / step, None, "tokens/s")
        size = {"bf16": 2 * ALL, "int8": ALL, "int4": LAYERS * 0.53125 + (ALL - LAYERS)}[q]
        row(f"decode batch 1, {q}: whole step", size / step / ceilings["read_gb_s"] / 1e7, None,
            "% of bandwidth")
    for name in ("prefill 512", "batch-1 decode", "batch 16 decode", "batch 32 decode",
                 "batch 64 decode"):
        row(f"against llama.cpp, {name}: skipped", None, None, "x")
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        machine = re.search(r"model name\s*: (.*)", f.read()).group(1)
    result = {"machine": f"{machine}, {ceilings['threads']} threads, {ceilings['isa']}",
              "commit": commit, "date": datetime.date.today().isoformat(),
              "ceilings": ceilings, "rows": rows}
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    for r in rows:
        print(f"{r['name']:<46} {r['value'] if r['value'] is not None else '-':>10} {r['unit']:<16}"
              f" goal {r['goal'] if r['goal'] is not None else '-'}")


main()
