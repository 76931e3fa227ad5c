#!/usr/bin/env python3
"""What a JSON schema costs a token: the same number of requests over HTTP with one and without, one
and 32 at a time, in turns; medians.

    bench/schema.py                     on the CPU
    DEVICE=cuda bench/schema.py         on a GPU

BIN=DIR: where sluice is. Rows go to bench/results/schema-cpu.json or -h200.json (OUT=FILE: there).
Standard library only.
SPDX-License-Identifier: Apache-2.0
"""
import concurrent.futures
import http.client
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import threading
import time

from speculation import origin

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLUICE = pathlib.Path(os.environ.get("BIN", ROOT / "build")) / "sluice"
DEVICE = os.environ.get("DEVICE", "cpu")
REPEATS = int(os.environ.get("REPEATS", "3"))
TOKENS = 200
SCHEMA = {
    "type": "object", "required": ["users"], "additionalProperties": False,
    "properties": {"users": {"type": "array", "minItems": 40, "items": {
        "type": "object", "required": ["name", "age", "tags"], "additionalProperties": False,
        "properties": {"name": {"type": "string", "maxLength": 12},
                       "age": {"type": "integer", "minimum": 0, "maximum": 120},
                       "tags": {"type": "array", "maxItems": 2,
                                "items": {"enum": ["red", "green", "blue"]}}}}}}}
WITH = {"response_format": {"type": "json_schema",
                            "json_schema": {"name": "users", "schema": SCHEMA}}}
local = threading.local()


def ask(port, i, extra):
    """Tokens of one answer."""
    if not hasattr(local, "link"):
        local.link = http.client.HTTPConnection("127.0.0.1", port)
    body = {"messages": [{"role": "user", "content": f"Describe the users of page {i}."}],
            "max_tokens": TOKENS, "temperature": 0.8, "seed": i, **(extra or {"ignore_eos": True})}
    local.link.request("POST", "/v1/chat/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    return json.loads(local.link.getresponse().read())["usage"]["completion_tokens"]


def tokens_per_s(port, width, n, extra):
    with concurrent.futures.ThreadPoolExecutor(width) as pool:
        start = time.monotonic()
        tokens = sum(pool.map(lambda i: ask(port, i, extra), range(n)))
    return tokens / (time.monotonic() - start)


def measure(port, width, n):
    tokens_per_s(port, width, n, None)
    tokens_per_s(port, width, n, WITH)
    pairs = [(tokens_per_s(port, width, n, None), tokens_per_s(port, width, n, WITH))
             for _ in range(REPEATS)]
    without, with_it = (statistics.median(column) for column in zip(*pairs))
    row = {"width": width, "without_tokens_per_s": round(without, 1),
           "with_tokens_per_s": round(with_it, 1),
           "us_a_token": round(1e6 / with_it - 1e6 / without, 2)}
    print(f"{width:3} at once: {without:9.1f} tokens/s without a schema, {with_it:9.1f} with one; "
          f"{row['us_a_token']} us more a token", flush=True)
    return row


def main():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with subprocess.Popen([SLUICE, "serve", ROOT / "models/pebble", "--device", DEVICE, "--port",
                           str(port), "--kv-cache-memory-bytes", str(256 << 20), "--log-level",
                           "error"]) as server:
        try:
            for _ in range(300):
                if server.poll() is not None:
                    sys.exit("the server did not start")
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            rows = [measure(port, 1, 6), measure(port, 32, 96)]
        finally:
            server.terminate()
    where = "cpu" if DEVICE == "cpu" else "h200"
    path = pathlib.Path(os.environ.get("OUT", ROOT / f"bench/results/schema-{where}.json"))
    path.write_text(json.dumps({**origin(), "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
