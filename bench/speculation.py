#!/usr/bin/env python3
"""Speculation on pebble: acceptance, speed-up of one request at a time, and that a crowd is never
slowed down. Runs with and without take turns; figures are medians.

    bench/speculation.py                        on an idle machine, a few minutes
    REPEATS=1 bench/speculation.py single       one part: single, crowd
    THREADS=1 bench/speculation.py              on a busy one: tokens a second of CPU time

Writes bench/results/speculation-cpu.json. Standard library only.
SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLUICE = os.environ.get("SLUICE", str(ROOT / "build" / "sluice"))
MODEL = str(ROOT / "models" / "pebble")
REPEATS = int(os.environ.get("REPEATS", "3"))
THREADS = os.environ.get("THREADS", "2")
METHODS = {
    "draft model": {"model": str(ROOT / "models" / "pebble-draft"), "num_speculative_tokens": 4},
    "ngram": {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 2,
              "prompt_lookup_max": 4},
    "suffix": {"method": "suffix", "num_speculative_tokens": 8},
}
WORDS = ("the old captain looked over a quiet harbour and said that every ship which leaves in the "
         "morning comes back with stories nobody else has heard before while small boats wait for "
         "wind and rain to pass under bridges of stone and iron").split()
NAMES = ("Rosa Kim", "Omar Haddad", "Lena Fischer", "Paul Novak", "Mia Rossi", "Ivan Petrov")
CITIES = ("Lisbon", "Oslo", "Prague", "Lima", "Dublin", "Kyoto")


def run(*args):
    done = subprocess.run([SLUICE, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"sluice {' '.join(args)}: {done.stderr}")
    return done.stdout


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
    out = run("generate", MODEL, "-i", str(asked), "--json", "--temperature", "0", "--max-tokens",
              "90", "--no-progress", "--log-level", "error")
    answers = [json.loads(line) for line in out.splitlines()]
    return [{"prompt": p, "output_tokens": len(a["outputs"][0]["token_ids"])}
            for p, a in zip(prompts, answers)]


def dataset(folder, name, items):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(i) + "\n" for i in items))
    return path, len(items)


def once(folder, data, n, width, temperature, config, tokens=None):
    out = folder / "out.json"
    args = ["bench", "throughput", MODEL, "--dataset-name", "custom", "--dataset-path", str(data),
            "--num-prompts", str(n), "--max-num-seqs", str(width), "--threads", THREADS,
            "--temperature", str(temperature), "--output-json", str(out), "--no-progress",
            "--log-level", "error", "--num-warmups", str(min(n, max(8, width)))]
    if tokens:
        args += ["--max-num-batched-tokens", str(tokens)]
    if config:
        args += ["--speculative-config", json.dumps(config)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(out.read_text())
    result["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result


def per_wall_s(result):
    return result["output_tokens_per_second"]


def per_cpu_s(result):
    """With one thread CPU time is measured, start-up and warm-up included: other load hardly enters.
    """
    return result["output_tokens_per_second"] * result["elapsed_time"] / result["cpu_s"]


def compare(folder, name, data, n, width, temperature, config):
    """Both ways in turn."""
    without, with_it, last = [], [], {}
    per_s = per_cpu_s if THREADS == "1" else per_wall_s
    for _ in range(REPEATS):
        without.append(per_s(once(folder, data, n, width, temperature, None)))
        last = once(folder, data, n, width, temperature, config)
        with_it.append(per_s(last))
    row = {
        "name": name,
        "width": width,
        "temperature": temperature,
        "without_tokens_per_s": round(statistics.median(without), 1),
        "with_tokens_per_s": round(statistics.median(with_it), 1),
        "ratio": round(statistics.median(b / a for a, b in zip(without, with_it)), 3),
        "ratios": [round(b / a, 3) for a, b in zip(without, with_it)],
        "acceptance_percent": round(last["spec_decode_acceptance_rate"], 1),
        "acceptance_length": round(last["spec_decode_acceptance_length"], 2),
        "draft_tokens": last["spec_decode_draft_tokens"],
    }
    print(f"{name:32} {width:4} at once, temperature {temperature}: "
          f"{row['without_tokens_per_s']:8.1f} -> {row['with_tokens_per_s']:8.1f} tokens/s, "
          f"x{row['ratio']:.2f}; {row['acceptance_percent']}% accepted, "
          f"{row['acceptance_length']} tokens a verification", flush=True)
    return row


def main():
    parts = sys.argv[1:] or ["single", "crowd"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        chat, n_chat = dataset(folder, "chat", chats())
        copy, n_copy = dataset(folder, "copy", copies(folder))
        both = [json.loads(x) for x in (chat.read_text() + copy.read_text()).splitlines()]
        if "single" in parts:
            for temperature in (0, 1):
                for method, config in METHODS.items():
                    rows.append(compare(folder, f"{method}, chats", chat, n_chat, 1, temperature,
                                        config))
            rows.append(compare(folder, "ngram, copying", copy, n_copy, 1, 0, METHODS["ngram"]))
            rows.append(compare(folder, "draft model, copying", copy, n_copy, 1, 0,
                                METHODS["draft model"]))
        if "crowd" in parts:
            for width, times in ((32, 6), (256, 16)):
                data, n = dataset(folder, f"crowd{width}", both * times)
                for method, config in METHODS.items():
                    for temperature in (0, 1):
                        rows.append(compare(folder, f"{method}, chats and copying", data, n, width,
                                            temperature, config))
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True, check=False).stdout.strip()
    path = pathlib.Path(os.environ.get("OUT", ROOT / "bench/results/speculation-cpu.json"))
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    mine = {(r["name"], r["width"], r["temperature"]) for r in rows}
    kept = [r for r in old if (r["name"], r["width"], r["temperature"]) not in mine]
    path.write_text(json.dumps({"commit": commit, "threads": int(THREADS), "rows": kept + rows},
                               indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
