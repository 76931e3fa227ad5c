#!/usr/bin/env python3
"""Latencies of a server at several rates of arrival, with the requests of a trace.

    bench/rates.py SLUICE TRACE.csv SECONDS RATE,RATE,... COMMAND ...

Starts COMMAND (a server), and for each rate sends as many of the trace's requests as come in SECONDS,
at Poisson times. A line each: rate, requests, output tokens/s, median and p99 of the time to the
first token and between tokens, in ms.

SPDX-License-Identifier: Apache-2.0
"""
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile

from start import PORT, server


def write_trace(path, rows, rate, seconds):
    rng, at = random.Random(1), 0.0
    with open(path, "w", encoding="utf-8") as f:
        f.write("arrived_s,input_tokens,output_tokens\n")
        for r in itertools.islice(itertools.cycle(rows), max(20, int(rate * seconds))):
            at += rng.expovariate(rate)
            f.write(f"{at:.4f},{r['input_tokens']},{r['output_tokens']}\n")


def measure(sluice, folder, trace, seed):
    """Every seed has prompts of its own: what an earlier run left in the prefix cache is of no use."""
    subprocess.run([sluice, "bench", "serve", "--port", str(PORT), "--trace", trace,
                    "--seed", str(seed),
                    "--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99",
                    "--save-result", "--result-dir", folder, "--result-filename", "result.json",
                    "--num-prompts", "100000", "--no-progress"],
                   check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(folder, "result.json"), encoding="utf-8") as f:
        return json.load(f)


def main():
    sluice, trace, seconds, rates = sys.argv[1:5]
    with open(trace, encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    with tempfile.TemporaryDirectory() as folder, server(sys.argv[5:]):
        path = os.path.join(folder, "trace.csv")
        write_trace(path, rows, 4, 5)
        measure(sluice, folder, path, 0)  # kernels are chosen and graphs captured on the way
        for i, rate in enumerate(map(float, rates.split(","))):
            write_trace(path, rows, rate, float(seconds))
            r = measure(sluice, folder, path, i + 1)
            print(f"serve {rate:.2f} {r['completed']} {r['output_throughput']:.1f}",
                  *(f"{r[k]:.2f}" for k in ("median_ttft_ms", "p99_ttft_ms", "median_itl_ms",
                                            "p99_itl_ms")), flush=True)


if __name__ == "__main__":
    main()
