#!/usr/bin/env python3
"""Turns what bench/cpu.sh measured into bench/results/cpu.json, a plot beside it, and a table.

    bench/cpu_report.py RAW_DIR TARGET.json COMMIT      reads raw figures
    bench/cpu_report.py TARGET.json                     draws the plot of a result again

Rows that were skipped this time stay as TARGET.json has them, each with the commit that it was
measured at.

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
STEP = re.compile(r"^step (\w+) batch (\d+) context (\d+) tokens (\d+): ([\d.]+) ms, readable "
                  r"([\d.e+]+) bytes, possible ([\d.e+]+) operations")
# Llama-3.2-1B: parameters of the products of one layer, and of all with lm_head.
HIDDEN, FFN, N_LAYERS, KV_TOKEN = 2048, 8192, 16, 16 * 2 * 8 * 64 * 2
O_DOWN = HIDDEN * HIDDEN + FFN * HIDDEN
LAYERS = N_LAYERS * (3072 * HIDDEN + 2 * FFN * HIDDEN + O_DOWN)
HEAD = 128256 * HIDDEN
ALL = LAYERS + HEAD
# int4: a group of 128 has 4 bytes of scale and offset; o and down of two layers are int8.
BYTES = {"bf16": 2 * ALL, "int8": ALL, "int4": (LAYERS - 2 * O_DOWN) * 68 / 128 + 2 * O_DOWN + HEAD}


class Raw:
    """The figures of one folder."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, name):
        return os.path.join(self.folder, name)

    def lines(self, name, pattern):
        if not os.path.exists(self.path(name)):
            return []
        with open(self.path(name), encoding="utf-8") as f:
            return [m.groups() for m in map(pattern.match, f) if m]

    def json(self, name):
        if not os.path.exists(self.path(name)):
            return None
        with open(self.path(name), encoding="utf-8") as f:
            return json.load(f)

    def jsonl(self, name):
        if not os.path.exists(self.path(name)):
            return []
        with open(self.path(name), encoding="utf-8") as f:
            return [json.loads(line) for line in f if line.startswith("{")]

    def steps(self, form, threads=None):
        """(batch, tokens of each) -> seconds, readable bytes, possible operations. Without threads:
        those measured before and after llama.cpp, their means."""
        if not threads:
            found = self.step_means(f"turn-{form}.txt")
            found.update(self.step_means(f"one-{form}.txt"))
            return found
        return self.step_means(f"steps-{form}-{threads}.txt")

    def step_means(self, name):
        found = {}
        for _, b, _, t, ms, read, ops in self.lines(name, STEP):
            found.setdefault((int(b), int(t)), []).append((float(ms) / 1e3, float(read), float(ops)))
        return {k: tuple(sum(column) / len(v) for column in zip(*v)) for k, v in found.items()}


def mean_over_shapes(rows, m, column):
    """gate_up is two thirds of the MLP's weights, down one."""
    picked = {int(r[2]): float(r[column]) for r in rows if int(r[3]) == m}
    return (2 * picked[2048] + picked[8192]) / 3 if picked else None


class Table:
    def __init__(self):
        self.rows = []

    def add(self, name, value, unit, goal=None, better="higher"):
        self.rows.append({"name": name, "value": None if value is None else round(value, 3),
                          "goal": goal, "better": better, "unit": unit})


def step_bytes(form, batch, context):
    return BYTES[form] + batch * context * KV_TOKEN


def prefill_rows(t, raw, threads):
    dense = 2 * LAYERS * 512 + 2 * HEAD
    seconds = {}
    for form in ("bf16", "int8", "int4"):
        lines = raw.lines(form + ".txt", LINEAR)
        if lines:
            t.add(f"prefill 512, {form}: matrix products", mean_over_shapes(lines, 512, 8),
                  "% of peak", 60 if form == "bf16" else None)
        step = raw.steps(form, threads).get((1, 512))
        if not step:
            continue
        seconds[form] = step[0]
        t.add(f"prefill 512, {form}: whole step", 100 * dense / step[2], "% of peak",
              50 if form == "bf16" else None)
        t.add(f"prefill 512, {form}: tokens", 512 / step[0], "tokens/s")
    if "bf16" in seconds and "int8" in seconds:
        t.add("prefill 512, int8 against bf16", seconds["bf16"] / seconds["int8"], "x", 1.5)


def decode_rows(t, raw, threads):
    for form, goal in (("bf16", 85), ("int8", 85), ("int4", 75)):
        lines = raw.lines(form + ".txt", LINEAR)
        steps = raw.steps(form, threads)
        if lines:
            t.add(f"decode batch 1, {form}: products, weights read", mean_over_shapes(lines, 1, 6),
                  "% of bandwidth")
        if (1, 1) not in steps:
            continue
        one = steps[1, 1]
        t.add(f"decode batch 1, {form}: whole step, weights read",
              100 * BYTES[form] / one[1], "% of bandwidth", goal)
        t.add(f"decode batch 1, {form}: tokens", 1 / one[0], "tokens/s")
        for batch in (16, 32, 64):
            s = steps[batch, 1]
            t.add(f"decode batch {batch}, {form}: step against batch 1", s[0] / one[0], "x",
                  1.5 if (batch, form) == (32, "bf16") else None, "lower")
            # The floor: all operations at peak rate, or all bytes at full bandwidth.
            floor = max(batch * 2 * ALL / s[2], step_bytes(form, batch, 256) / s[1])
            t.add(f"decode batch {batch}, {form}: step against its floor", 1 / floor, "x", None,
                  "lower")
            t.add(f"decode batch {batch}, {form}: tokens", batch / s[0], "tokens/s")


def attention_rows(t, raw):
    for a in raw.lines("attention.txt", ATTENTION):
        if a[1:4] == ("32", "2048", "1") and a[0] in ("bf16", "int8"):
            t.add(f"attention decode, 32 x 2048, {a[0]} KV: KV read", float(a[6]),
                  "% of bandwidth", 75 if a[0] == "bf16" else None)
            t.add(f"attention decode, 32 x 2048, {a[0]} KV: time", float(a[4]), "ms", None, "lower")
        elif a[0] == "bf16" and a[3] == "512":
            t.add(f"attention prefill, 512 of {a[2]}, bf16: rate", float(a[8]), "% of bf16 peak")


def thread_rows(t, raw, threads):
    for form in ("bf16", "int8"):
        one, all_ = raw.steps(form, 1), raw.steps(form, threads)
        if not one or not all_ or threads == 1:
            continue
        t.add(f"{threads} threads against one, prefill 512, {form}",
              one[1, 512][0] / all_[1, 512][0], "x", 1.9)
        peak = (all_[1, 512][2] / all_[1, 512][0]) / (one[1, 512][2] / one[1, 512][0])
        t.add(f"{threads} threads against one, peak rate itself, {form}", peak, "x")
        t.add(f"{threads} threads against one, decode batch 32, {form}",
              one[32, 1][0] / all_[32, 1][0], "x")


def dnnl_rows(t, raw):
    lines = raw.lines("dnnl.txt", LINEAR)
    for form in ("bf16", "int8"):
        ours = raw.lines(form + ".txt", LINEAR)
        theirs = [r for r in lines if r[0] == "dnnl_" + form]
        if not ours or not theirs:
            continue
        for m in (1, 16, 32, 512):
            t.add(f"product M = {m}, {form}: ours", mean_over_shapes(ours, m, 7), "G/s")
            t.add(f"product M = {m}, {form}: oneDNN", mean_over_shapes(theirs, m, 7), "G/s")


def llama_speeds(raw, form):
    speed = {}
    for r in raw.jsonl(f"llama-{form}.jsonl"):
        if r["n_prompt"]:
            speed["prefill"] = r["avg_ts"]
    one = [r["avg_ts"] for r in raw.jsonl(f"llama-one-{form}.jsonl")]
    if one:
        speed[1] = len(one) / sum(1 / v for v in one)
    for r in raw.jsonl(f"llama-batched-{form}.jsonl"):
        speed[r["pl"]] = r["speed_tg"]
    return speed


def our_speeds(raw, form):
    steps = raw.steps(form)
    speed = {b: b / s[0] for (b, n), s in steps.items() if n == 1}
    if (1, 512) in steps:
        speed["prefill"] = 512 / steps[1, 512][0]
    return speed


def best(mine, other, what):
    """The best on either side, of the formats that were measured on both."""
    pairs = [(m[what], o[what]) for m, o in zip(mine, other) if what in m and what in o]
    return (max(column) for column in zip(*pairs)) if pairs else (None, None)


def llama_rows(t, raw):
    kinds = (("int8 or int4 against Q8_0 or Q4_0", ("int8", "int4"), ("q8_0", "q4_0"),
              {"prefill": 6, 1: 1.05, 16: 3, 32: 5, 64: 8}),
             ("bf16 against BF16", ("bf16",), ("bf16",), {"prefill": 10, 1: 1.1, 16: 5, 32: 6}))
    for title, ours, theirs, goals in kinds:
        mine = [our_speeds(raw, f) for f in ours]
        other = [llama_speeds(raw, f) for f in theirs]
        for what, goal in goals.items():
            name = "prefill 512" if what == "prefill" else f"decode batch {what}"
            a, b = best(mine, other, what)
            if not a or not b:
                t.add(f"llama.cpp, {name}, {title}: skipped", None, "x", goal)
                continue
            t.add(f"llama.cpp, {name}, {title}", a / b, "x", goal)
            t.add(f"llama.cpp, {name}, {title}: its rate", b, "tokens/s")


def met(row):
    if row["goal"] is None or row["value"] is None:
        return None
    return row["value"] >= row["goal"] if row["better"] == "higher" else row["value"] <= row["goal"]


def plot(result, target):
    """Each goal's row as a bar: value over goal, or goal over value where less is better."""
    rows = [r for r in result["rows"] if met(r) is not None]
    left, width, line = 430, 300, 22
    height = 60 + line * len(rows)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 150}" '
           f'height="{height}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="20" font-size="14">Share of each goal reached, {result["date"]}: '
           f'{result["machine"]}</text>']
    one = left + width / 2
    for i, r in enumerate(rows):
        share = r["value"] / r["goal"] if r["better"] == "higher" else r["goal"] / r["value"]
        y = 34 + i * line
        colour = "#2f855a" if met(r) else "#c05621"
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{r["name"]}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{min(share, 2) * width / 2:.1f}" height="16" '
                   f'fill="{colour}"/>')
        out.append(f'<text x="{left + width + 8}" y="{y + 13}">{r["value"]:g} {r["unit"]}'
                   f' (goal {r["goal"]:g})</text>')
    out.append(f'<line x1="{one}" y1="28" x2="{one}" y2="{height - 24}" stroke="black"/>')
    out.append(f'<text x="{one}" y="{height - 8}" text-anchor="middle">goal</text></svg>')
    with open(target, "w", encoding="utf-8") as f:
        f.write("\n".join(out) + "\n")


def keep_skipped(rows, target):
    """Rows skipped this time, taken from the last result where it has them."""
    if not os.path.exists(target):
        return rows
    with open(target, encoding="utf-8") as f:
        last = json.load(f)
    result = []
    for r in rows:
        title = r["name"].removesuffix(": skipped")
        old = [o for o in last["rows"] if o["name"] in (title, title + ": its rate")]
        old = [{**o, "commit": o.get("commit", last["commit"])} for o in old if o["value"]]
        result += old if r["value"] is None and old else [r]
    return result


def report(folder, target, commit):
    raw, t = Raw(folder), Table()
    ceilings = raw.json("ceilings.json")
    threads = ceilings["threads"]
    if raw.json("ceilings-1.json"):
        ceilings["one_thread"] = raw.json("ceilings-1.json")
    prefill_rows(t, raw, threads)
    decode_rows(t, raw, threads)
    attention_rows(t, raw)
    thread_rows(t, raw, threads)
    llama_rows(t, raw)
    dnnl_rows(t, raw)
    with open(raw.path("machine.txt"), encoding="utf-8") as f:
        machine = f.read().strip()
    result = {"machine": f"{machine}, {threads} threads, {ceilings['isa']}", "commit": commit,
              "date": datetime.date.today().isoformat(), "ceilings": ceilings,
              "rows": keep_skipped(t.rows, target)}
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    return result


def main():
    if len(sys.argv) == 2:
        with open(sys.argv[1], encoding="utf-8") as f:
            result = json.load(f)
        target = sys.argv[1]
    else:
        target = sys.argv[2]
        result = report(sys.argv[1], target, sys.argv[3])
    plot(result, os.path.splitext(target)[0] + ".svg")
    for r in result["rows"]:
        value = "-" if r["value"] is None else f"{r['value']:g}"
        goal = "" if r["goal"] is None else f"goal {r['goal']:g} " + \
            {True: "met", False: "missed", None: ""}[met(r)]
        print(f"{r['name']:<68} {value:>9} {r['unit']:<15} {goal}")


main()
