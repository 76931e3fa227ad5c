#!/usr/bin/env python3
"""Speed of sluice's tokenizer beside the tokenizers package, in the same run.

  ninja -C build bench_tokenizer && python3 bench/tokenizer.py [--shared ../shared] [--bench build/bench_tokenizer] [--json]

One thread, 1 MB of English and 1 MB of mixed Unicode, the vocabularies under --shared. Each figure is
the best of --repeat; loading is from a plain tokenizer.json, as a server finds it. The two programs
take turns, so that a busy machine slows both alike.

SPDX-License-Identifier: Apache-2.0
"""
import argparse
import gzip
import json
import os
import random
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer

VOCABULARIES = ["llama3/tokenizer.json.gz", "qwen2/tokenizer.qwen2.5.json.gz", "llama2/tokenizer.json",
                "t5/tokenizer.json", "bert/tokenizer.json"]


def mixed(shared, size=1_000_000):
    """Texts of many scripts, emoji and code from the vectors, in an order of chance."""
    rng, texts = random.Random(5), []
    base = os.path.join(shared, "data/tokenizers")
    for folder in sorted(os.listdir(base)):
        for name in ("vectors.jsonl", "vectors_own.jsonl"):
            path = os.path.join(base, folder, name)
            if os.path.exists(path):
                texts += [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
    texts = sorted({t for t in texts if not t.isascii() and len(t) < 3000})
    out, n = [], 0
    while n < size:
        out.append(rng.choice(texts) + " ")
        n += len(out[-1].encode())
    return "".join(out)


def ours(bench, folder, files, repeat):
    r = subprocess.run([bench, folder, str(repeat), *files], capture_output=True, text=True, check=True)
    return [float(x) for x in r.stdout.split()]  # load ms, then ms a file


def theirs(folder, texts, repeat):
    path, loads = os.path.join(folder, "tokenizer.json"), []
    for _ in range(2):
        start = time.perf_counter()
        tok = Tokenizer.from_file(path)
        loads.append(time.perf_counter() - start)
    tok.no_truncation()
    out = [min(loads) * 1e3]
    for text in texts:
        best = float("inf")
        for _ in range(repeat):
            start = time.perf_counter()
            tok.encode_batch_fast([text], add_special_tokens=False)  # its quickest way
            best = min(best, time.perf_counter() - start)
        out.append(best * 1e3)
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--shared", default=os.environ.get("SLUICE_SHARED", "../shared"))
    ap.add_argument("--bench", default="build/bench_tokenizer")
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--json", action="store_true")
    args = ap.parse_args()
    english = open(os.path.join(args.shared, "data/text/shakespeare.txt"), encoding="utf-8", newline="").read()
    texts, rows = [english, mixed(args.shared)], []
    with tempfile.TemporaryDirectory() as tmp:
        files = [os.path.join(tmp, name) for name in ("english", "mixed")]
        for path, text in zip(files, texts):
            open(path, "w", encoding="utf-8", newline="").write(text)
        for name in VOCABULARIES:
            path = os.path.join(args.shared, "data/tokenizers", name)
            with (gzip.open(path) if name.endswith(".gz") else open(path, "rb")) as f:
                open(os.path.join(tmp, "tokenizer.json"), "wb").write(f.read())
            a, b = ours(args.bench, tmp, files, args.repeat), theirs(tmp, texts, args.repeat)
            mb = [len(t.encode()) / 1e6 for t in texts]
            rows.append({"vocabulary": name, "load_ms": a[0], "load_ms_hf": b[0],
                         "english_mb_s": mb[0] / a[1] * 1e3, "english_mb_s_hf": mb[0] / b[1] * 1e3,
                         "mixed_mb_s": mb[1] / a[2] * 1e3, "mixed_mb_s_hf": mb[1] / b[2] * 1e3})
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("| vocabulary | load, ms (HF) | English, MB/s (HF) | ratio | mixed, MB/s (HF) | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for r in rows:
        print(f"| {r['vocabulary']} | {r['load_ms']:.0f} ({r['load_ms_hf']:.0f}) "
              f"| {r['english_mb_s']:.1f} ({r['english_mb_s_hf']:.1f}) | {r['english_mb_s'] / r['english_mb_s_hf']:.1f} "
              f"| {r['mixed_mb_s']:.1f} ({r['mixed_mb_s_hf']:.1f}) | {r['mixed_mb_s'] / r['mixed_mb_s_hf']:.1f} |")


if __name__ == "__main__":
    main()
