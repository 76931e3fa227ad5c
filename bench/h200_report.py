#!/usr/bin/env python3
"""Merges what bench/h200.sh measured into a results file, and prints its rows.

    bench/h200_report.py RAW_DIR TARGET.json COMMIT

SPDX-License-Identifier: Apache-2.0
"""
import csv
import datetime
import json
import math
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
    for m in re.finditer(r"(bf16|e4m3) (\w+)\s+m\s+(\d+): own\s+[\d.]+ us,\s+(\d+) % of the floor,"
                         r"\s+\d+ TFLOP/s(?:; cuBLASLt\s+[\d.]+ us, own at\s+(\d+) %)?",
                         read(folder, "products.txt")):
        name = f"{m[1]} product {m[2]}, {m[3]} rows"
        rows.append(row(name + ": share of the floor", float(m[4]), 90 if int(m[3]) <= 16 else 80,
                        "higher", "%"))
        if m[5] and int(m[3]) > 1024:
            rows.append(row(name + ": share of cuBLASLt's rate", float(m[5]), 75, "higher", "%"))
    for m in re.finditer(r"attention\s+(\d+) x q\s+(\d+) kv\s+(\d+):\s+([\d.]+) us,\s+(\d+) TFLOP/s, "
                         r"KV bytes at\s+(\d+) %", read(folder, "kernels.txt")):
        if m[2] == "1":
            rows.append(row(f"decode attention, {m[1]} x {m[3]}: share of the copy rate",
                            float(m[6]), 88, "higher", "%"))
        else:
            over = "" if m[2] == m[3] else f" over {m[3]}"
            rows.append(row(f"prefill attention, {m[1]} x {m[2]}{over}", float(m[5]), 495, "higher",
                            "TFLOP/s"))
    return rows


def step_rows(folder, top):
    rows, text = [], read(folder, "steps.txt")
    for m in re.finditer(r"step (\d+) ([\d.e-]+) ([\d.e-]+)", text):
        batch, seconds = int(m[1]), (float(m[3]) - float(m[2])) / 64
        rows.append(row(f"decode step, batch {batch}, context 1k", seconds * 1e3,
                        3.83 if batch == 1 else None, "lower", "ms"))
        if top:
            bandwidth, rate = top["copy_tb_s"] * 1e12, top["bf16_tflop_s"] * 1e12
            floor = batch * (1024 + 48) * KV_TOKEN / bandwidth
            floor += max(WEIGHTS / bandwidth, batch * WEIGHTS / rate)  # 2 bytes and 2 operations each
            rows.append(row(f"decode step, batch {batch}: share of its floor",
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


def fast_rows(folder):
    """name of a default row -> what --fast-nondeterministic gives"""
    text, found = read(folder, "steps-fast.txt"), {}
    for m in re.finditer(r"step (\d+) ([\d.e-]+) ([\d.e-]+)", text):
        found[f"decode step, batch {m[1]}, context 1k"] = (float(m[3]) - float(m[2])) / 64 * 1e3
    m = re.search(r"prefill 8 2048 ([\d.e-]+)", text)
    if m:
        found["prefill 8 x 2,048"] = float(m[1]) * 1e3
    return found


def peer_rows(folder):
    text = read(folder, "peer.txt")
    ours = re.search(r"([\d.]+) output tokens/s", text)
    m = re.search(r"^peer (\d+) ([\d.]+) ([\d.]+) (\d+) (\d+) (\S+)", text, re.M)
    if not ours or not m:
        return []
    here, mean, best = float(ours[1]), int(m[1]) / float(m[2]), float(m[3])
    of = f"{m[6]}, 256 requests of the trace, its first {float(m[2]):.0f} s"
    return [row("256 requests of the trace at once: output", here, None, "higher", "tokens/s"),
            row(f"{of}: output", mean, None, "higher", "tokens/s"),
            row(f"{of}: output in its best 20 s", best, None, "higher", "tokens/s"),
            row("output against transformers' best 20 s", here / best, 1, "higher", "x")]


def serve_rows(folder):
    rows = []
    found = [list(map(float, line.split()[1:])) for line in read(folder, "serve.txt").splitlines()
             if line.startswith("serve ")]
    for rate, _, output, ttft, ttft99, itl, itl99 in found:
        name = f"serving the trace at {rate:.1f} requests/s: "
        at_goal = rate == found[-2][0]  # 80 % of what `trace` found
        rows += [row(name + "output", output, None, "higher", "tokens/s"),
                 row(name + "time to first token, median", ttft, 100 if at_goal else None, "lower",
                     "ms"),
                 row(name + "time to first token, p99", ttft99, None, "lower", "ms"),
                 row(name + "between tokens, median", itl, None, "lower", "ms"),
                 row(name + "between tokens, p99 over the median", itl99 / itl,
                     3 if at_goal else None, "lower", "x")]
    return rows


def start_rows(folder):
    rows, text, load = [], read(folder, "start.txt"), read(folder, "load.txt")
    ready = sorted(map(float, re.findall(r"ready ([\d.]+)", text)))
    cuda = re.findall(r"CUDA start-up took ([\d.]+)", text)
    if ready:
        rows.append(row("start to ready, dummy 8B", ready[len(ready) // 2], 3, "lower", "s"))
    if cuda:
        rows.append(row("start to ready: CUDA's own start-up", float(cuda[0]), None, "lower", "s"))
    size, took = re.search(r"([\d.]+) GB", load), re.findall(r"weights took ([\d.]+)", load)
    if size and took:
        rows.append(row("weights of a file in memory (1B)", float(size[1]) / min(map(float, took)),
                        None, "higher", "GB/s"))
    return rows


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
            goal = 75 if experts or m[1] == "llama-3.2-1b" else 85
            rows.append(row(f"{m[1]}: decode step, share of its bytes' floor",
                            100 * n / (top["copy_tb_s"] * 1e12) / seconds, goal,
                            "higher", "%"))
    return rows


def check_rows(folder):
    rows, swap = [], {}
    m = re.search(r"(\d+) whole, (\d+) cancelled, (\d+) preemptions, (\d+) of them swaps.* in ([\d.]+) s",
                  read(folder, "soak.txt"))
    if m:
        rows.append(row(f"soak: {int(m[1]) + int(m[2]):,} requests, {m[2]} cancelled, {m[4]} swapped",
                        float(m[5]), None, "lower", "s"))
    for m in re.finditer(r"swap (\d+) .*?([\d.]+) output tokens/s", read(folder, "swap.txt")):
        swap[m[1] != "0"] = float(m[2])
    if len(swap) == 2:
        rows += [row("too little KV memory: preempted requests computed again", swap[False], None,
                     "higher", "tokens/s"),
                 row("too little KV memory: copied to host memory and back", swap[True], None,
                     "higher", "tokens/s")]
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


# ---- the page and its pictures

BEGIN, END = "<!-- h200.json begins -->", "<!-- h200.json ends -->"


def number(v):
    return f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}"


def met(r):
    if r["goal"] is None:
        return ""
    ok = r["value"] >= r["goal"] if r["better"] == "higher" else r["value"] <= r["goal"]
    return "yes" if ok else "no"


def write_page(result, path="docs/performance.md"):
    lines = ["| | measured | `--fast-nondeterministic` | goal | met | commit |",
             "| --- | ---: | ---: | ---: | --- | --- |"]
    for r in result["rows"]:
        if "product " in r["name"]:
            continue  # dozens of shapes, in the file alone
        fast = number(r["fast"]) if "fast" in r else ""
        goal = "" if r["goal"] is None else number(r["goal"])
        lines.append(f"| {r['name']} | {number(r['value'])} {r['unit']} | {fast} | {goal} | {met(r)} "
                     f"| {r['commit']} |")
    text = open(path, encoding="utf-8").read()
    if BEGIN in text:
        head, rest = text.split(BEGIN)
        text = head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1]
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


class Plot:
    """A small SVG with one logarithmic axis or two."""
    W, H, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 70, 30, 20, 50

    def __init__(self, title, x, y):
        (self.x_name, self.x_range, self.x_log), (self.y_name, self.y_range, self.y_log) = x, y
        self.body = [f'<text x="{self.W / 2}" y="18" text-anchor="middle">{title}</text>']

    @staticmethod
    def share(v, between, log):
        low, high = between
        if log:
            v, low, high = math.log(v), math.log(low), math.log(high)
        return (v - low) / (high - low)

    def at(self, x, y):
        width, height = self.W - self.LEFT - self.RIGHT, self.H - self.TOP - self.BOTTOM
        return (self.LEFT + width * self.share(x, self.x_range, self.x_log),
                self.H - self.BOTTOM - height * self.share(y, self.y_range, self.y_log))

    def line(self, points, color, dash=""):
        text = " ".join("%.1f,%.1f" % self.at(*p) for p in points)
        self.body.append(f'<polyline points="{text}" fill="none" stroke="{color}" '
                         f'stroke-width="2" stroke-dasharray="{dash}"/>')

    def point(self, x, y, color, label="", dx=8, dy=-6):
        px, py = self.at(x, y)
        self.body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{color}"/>'
                         f'<text x="{px + dx:.1f}" y="{py + dy:.1f}">{label}</text>')

    def label(self, x, y, text, color):
        px, py = self.at(x, y)
        self.body.append(f'<text x="{px:.1f}" y="{py:.1f}" fill="{color}">{text}</text>')

    def ticks(self, between, log):
        low, high = between
        if log:
            first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
            return [10.0 ** e for e in range(first, last + 1)]
        step = 10 ** math.floor(math.log10(high - low))
        step = step / 2 if (high - low) / step < 4 else step
        return [low + i * step for i in range(int((high - low) / step) + 1)]

    def write(self, path):
        axes = []
        for v in self.ticks(self.x_range, self.x_log):
            x, y = self.at(v, self.y_range[0])
            axes.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{self.TOP}" stroke="#ddd"/>'
                        f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{v:g}</text>')
        for v in self.ticks(self.y_range, self.y_log):
            x, y = self.at(self.x_range[0], v)
            axes.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{self.W - self.RIGHT}" y2="{y:.1f}" '
                        f'stroke="#ddd"/><text x="{x - 6:.1f}" y="{y + 4:.1f}" '
                        f'text-anchor="end">{v:g}</text>')
        middle = (self.H + self.TOP - self.BOTTOM) / 2
        axes.append(f'<text x="{self.W / 2}" y="{self.H - 12}" text-anchor="middle">{self.x_name}</text>'
                    f'<text x="16" y="{middle}" text-anchor="middle" '
                    f'transform="rotate(-90 16 {middle})">{self.y_name}</text>')
        with open(path, "w", encoding="utf-8") as f:
            f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.W}" height="{self.H}" '
                    'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" '
                    'fill="white"/>\n' + "\n".join(axes + self.body) + "\n</svg>\n")


def draw_serving(rows, path="docs/h200-serving.svg"):
    found = {}
    for r in rows:
        m = re.match(r"serving the trace at ([\d.]+) requests/s: (.*)", r["name"])
        if m:
            found.setdefault(float(m[1]), {})[m[2]] = r["value"]
    points = sorted(found.values(), key=lambda p: p["output"])
    if len(points) < 2:
        return
    most = 1.1 * max(p["output"] for p in points)
    for p in points:
        p["between tokens, p99"] = p["between tokens, median"] * p["between tokens, p99 over the median"]
    low = 0.7 * min(p["between tokens, median"] for p in points)
    high = 1.5 * max(p["time to first token, p99"] for p in points)
    plot = Plot("Serving the Azure conversation trace, 8B in bf16 on one H200",
                ("output tokens/s", (0, most), False), ("ms", (low, high), True))
    for key, color in (("time to first token, p99", "#c55"), ("time to first token, median", "#e90"),
                       ("between tokens, p99", "#393"), ("between tokens, median", "#27a")):
        line = [(p["output"], p[key]) for p in points]
        plot.line(line, color)
        for x, y in line:
            plot.point(x, y, color)
        plot.label(line[0][0], 1.15 * max(line[0][1], line[1][1]), key, color)
    plot.write(path)


def draw_roofline(result, path="docs/h200-roofline.svg"):
    top, by_name = result["ceilings"], {r["name"]: r for r in result["rows"]}
    if not top:
        return
    rate, bandwidth = top["bf16_tflop_s"], top["copy_tb_s"]
    plot = Plot("Whole steps of an 8B model in bf16 on one H200",
                ("operations a byte", (0.5, 200000), True), ("TFLOP/s", (1, 1500), True))
    plot.line([(0.5, 0.5 * bandwidth), (rate / bandwidth, rate), (200000, rate)], "#555")
    plot.label(9, 5 * bandwidth, f"{bandwidth:.2f} TB/s copied", "#555")
    plot.label(2500, rate * 1.12, f"{rate:.0f} TFLOP/s", "#555")
    steps = [(f"decode step, batch {n}, context 1k", f"decode, batch {n}", n, 1) for n in (1, 64, 256)]
    steps.append(("prefill 8 x 2,048", "prefill 8 x 2,048", 8, 2048))
    for name, label, batch, q in steps:
        if name not in by_name:
            continue
        context = 1024 + 48 if q == 1 else q
        flops = 2.0 * PRODUCTS * batch * q + 2.0 * VOCAB * HIDDEN * batch
        flops += 4.0 * LAYERS * HIDDEN * batch * q * (context if q == 1 else q / 2)
        size = WEIGHTS + batch * context * KV_TOKEN * (1 if q == 1 else 2)
        at = flops / size
        plot.point(at, flops / by_name[name]["value"] / 1e9, "#27a", label, dx=8, dy=14)
    plot.write(path)


def known_rate(target):
    """requests/s of the trace, all at once"""
    for r in json.load(open(target, encoding="utf-8"))["rows"]:
        if r["name"] == "trace, 1,000 requests at once":
            return 1000 / r["value"]
    sys.exit("run the part `trace` first")


def main():
    if sys.argv[1] == "rate":
        print(known_rate(sys.argv[2]))
        return
    if sys.argv[1] == "page":
        result = json.load(open(sys.argv[2], encoding="utf-8"))
        write_page(result)
        draw_serving(result["rows"])
        draw_roofline(result)
        return
    folder, target, commit = sys.argv[1:]
    if not os.listdir(folder):
        return  # the parts that ran have files of their own
    result = json.load(open(target)) if os.path.exists(target) else {"rows": [], "ceilings": {}}
    result["ceilings"].update(ceilings(folder))
    top = result["ceilings"]
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                          capture_output=True, text=True, check=False).stdout.strip()
    result.update(machine=name or "unknown", commit=commit,
                  date=datetime.date.today().isoformat())
    new = kernel_rows(folder) + step_rows(folder, top) + trace_rows(folder, top)
    new += fp8_rows(folder) + fixed_rows(folder) + peer_rows(folder) + serve_rows(folder)
    new += start_rows(folder) + model_rows(folder, top) + check_rows(folder)
    for r in new:
        r["commit"] = commit
    fast = fast_rows(folder)
    for r in new + result["rows"]:
        if r["name"] in fast:
            r["fast"] = round(fast[r["name"]], 3)
    # A part's rows that have figures in their names take the place of those from before.
    begins = [p for p in ("serving the trace at", "soak:", "transformers-")
              if any(r["name"].startswith(p) for r in new)]
    result["rows"] = [r for r in result["rows"] if not r["name"].startswith(tuple(begins))]
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
