#!/usr/bin/env python3
"""Speculation on pebble: acceptance, speed-up of one request at a time, and that a crowd is never
slowed down. The same requests run with and without in turns, in one process (bench/speculation.c);
figures are medians over turns. "control" is two engines without, measured like the others.

    bench/speculation.py                        on an idle machine, many minutes
    bench/speculation.py crowd32 ngram          one part: single, crowd32, crowd256; some methods
    ROUNDS=4 TURNS=2 bench/speculation.py       two new engines a round, its turns with them
    THREADS=1 bench/speculation.py              on a busy one: tokens a second of CPU time
    DEVICE=cuda bench/speculation.py            on a GPU

BIN=DIR: where sluice and bench_speculation are. Writes bench/results/speculation-cpu.json or
-h200.json (OUT=FILE: there). Standard library only.
SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("BIN", ROOT / "build"))
MODEL = str(ROOT / "models" / "pebble")
DEVICE = os.environ.get("DEVICE", "cpu")
ROUNDS = int(os.environ.get("ROUNDS", "2"))
TURNS = int(os.environ.get("TURNS", "2"))
THREADS = int(os.environ.get("THREADS", "2"))
METHODS = {
    "control": None,
    "draft model": {"model": str(ROOT / "models" / "pebble-draft"), "num_speculative_tokens": 4},
    "ngram": {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 2,
              "prompt_lookup_max": 4},
    "suffix": {"method": "suffix", "num_speculative_tokens": 8},
}
PARTS = ("single", "crowd32", "crowd256")
WORDS = ("the old captain looked over a quiet harbour and said that every ship which leaves in the "
         "morning comes back with stories nobody else has heard before while small boats wait for "
         "wind and rain to pass under bridges of stone and iron").split()
NAMES = ("Rosa Kim", "Omar Haddad", "Lena Fischer", "Paul Novak", "Mia Rossi", "Ivan Petrov")
CITIES = ("Lisbon", "Oslo", "Prague", "Lima", "Dublin", "Kyoto")


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(args)}: {done.stderr}")
    return done.stdout


def origin():
    """What was measured, and where."""
    if DEVICE == "cpu":
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            machine = next(line.split(":")[1] for line in f if line.startswith("model name"))
    else:
        machine = run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()[0]
    commit = os.environ.get("COMMIT") or run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return {"commit": commit.strip(), "device": DEVICE, "machine": machine.strip()}


def chats():
    """The chats of the golden outputs."""
    with open(ROOT / "tests/golden/pebble/generate.jsonl", encoding="utf-8") as f:
        items = [json.loads(line) for line in f]
    return [{"prompt": i["prompt"].removeprefix("<|bos|>"), "output_tokens": len(i["output_ids"])}
            for i in items if i["id"].startswith("chat")]


def copies(folder):
    """Answers whose words stand in the prompt: short texts to be said again, facts to be put into
    JSON, questions asked a second time. The lengths are pebble's own."""
    rng = random.Random(7)
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [turn.format("Repeat after me: " + " ".join(rng.sample(WORDS, rng.randint(6, 10))))
               for _ in range(16)]
    for _ in range(16):
        name, city = rng.choice(NAMES), rng.choice(CITIES)
        prompts.append(turn.format(f"Extract name, age and city as JSON: {name} is "
                                   f"{rng.randint(20, 80)} years old and lives in {city}."))
    with open(ROOT / "tests/golden/pebble/generate.jsonl", encoding="utf-8") as f:
        for item in map(json.loads, f):
            if item["id"].startswith("chat") and len(item["output_ids"]) > 20:
                first = item["prompt"].removeprefix("<|bos|>")
                prompts.append(first + item["output_text"] + "\n" + first)
    asked = folder / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    out = run(str(BIN / "sluice"), "generate", MODEL, "--device", DEVICE, "-i", str(asked), "--json", "--temperature", "0", "--max-tokens",
              "90", "--no-progress", "--log-level", "error")
    answers = [json.loads(line) for line in out.splitlines()]
    return [{"prompt": p, "output_tokens": len(a["outputs"][0]["token_ids"])}
            for p, a in zip(prompts, answers)]


def dataset(folder, name, items):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(i) + "\n" for i in items))
    return str(path)


def cases(folder, parts, methods):
    chat, copy = chats(), copies(folder)
    out = []

    def add(name, data, width, temperatures):
        data = dataset(folder, f"{name} {width}", data)
        out.extend({"name": name, "data": data, "methods": methods, "width": width,
                    "temperature": t, "rounds": ROUNDS, "turns": TURNS} for t in temperatures)

    if "single" in parts:
        add("chats", chat, 1, (0, 1))
        add("copying", copy, 1, (0,))
    for width, times in ((32, 4), (256, 6)):
        if f"crowd{width}" in parts:
            add("chats and copying", (chat + copy) * times, width, (0, 1))
    return out


def row_of(case, r):
    ratios = [b / a for a, b in zip(r["without"], r["with"])]
    row = {
        "name": f"{r['method']}, {case['name']}",
        "width": case["width"],
        "temperature": case["temperature"],
        "without_tokens_per_s": round(statistics.median(r["without"]), 1),
        "with_tokens_per_s": round(statistics.median(r["with"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(x, 3) for x in ratios],
        "acceptance_percent": round(100 * r["accepted"] / max(1, r["draft_tokens"]), 1),
        "acceptance_length": round(1 + r["accepted"] / max(1, r["drafts"]), 2),
        "draft_tokens": r["draft_tokens"],
    }
    print(f"{row['name']:32} {row['width']:4} at once, temperature {row['temperature']}: "
          f"{row['without_tokens_per_s']:8.1f} -> {row['with_tokens_per_s']:8.1f} tokens/s, "
          f"x{row['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
          f"{row['acceptance_percent']}% of {row['draft_tokens']} accepted, "
          f"{row['acceptance_length']} tokens a verification", flush=True)
    return row


def main():
    parts = [p for p in PARTS if p in sys.argv] or PARTS
    methods = [m for m in METHODS if m in sys.argv] or list(METHODS)
    unknown = set(sys.argv[1:]) - set(PARTS) - set(METHODS)
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}")
    rows = []
    # With one thread CPU time is measured: other load on the machine hardly enters.
    plan = {"model": MODEL, "device": DEVICE, "threads": THREADS, "methods": METHODS,
            "clock": "cpu" if DEVICE == "cpu" and THREADS == 1 else "wall"}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        todo = cases(folder, parts, methods)
        path = folder / "plan.json"
        path.write_text(json.dumps({**plan, "cases": todo}))
        each = [c for c in todo for _ in c["methods"]]
        with subprocess.Popen([BIN / "bench_speculation", path], stdout=subprocess.PIPE,
                              text=True) as bench:
            rows = [row_of(c, json.loads(line)) for c, line in zip(each, bench.stdout)]
        if bench.returncode:
            sys.exit("bench_speculation failed")
    where = "cpu" if DEVICE == "cpu" else "h200"
    path = pathlib.Path(os.environ.get("OUT", ROOT / f"bench/results/speculation-{where}.json"))
    old = json.loads(path.read_text()) if path.exists() else {"rows": []}
    mine = {(r["name"], r["width"], r["temperature"]) for r in rows}
    whence = {k: old[k] for k in ("machine", "commit", "date") if k in old}
    kept = [{**whence, **r} for r in old["rows"] # an earlier run's, and they say so
            if (r["name"], r["width"], r["temperature"]) not in mine]
    path.write_text(json.dumps({**origin(), "threads": THREADS, "rows": kept + rows},
                               indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
