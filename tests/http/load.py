"""Many streaming clients at once: each must get what the same request gets alone.

    python3 tests/http/load.py --sluice build/sluice --clients 1000 -- --device cpu

What follows `--` are flags of `sluice serve`. Prints throughput, latencies and the 99th percentile
of /health during the load. test_load.py runs it in small.

SPDX-License-Identifier: Apache-2.0"""

import argparse
import asyncio
import json
import random
import sys
import time

from wire import MODEL, Server, metrics, request_bytes, wait_idle

WORDS = "list the files of an archive and copy them to another folder with tar cp mv".split()


def make_kinds(n, seed):
    """Requests of mixed lengths, seeds, stop strings and logprobs."""
    rng = random.Random(seed)
    kinds = []
    for i in range(n):
        body = {"model": MODEL, "stream": True, "max_tokens": rng.choice([5, 20, 60, 120]),
                "temperature": rng.choice([0, 0.7, 1.0]), "seed": rng.randrange(2**40)}
        text = " ".join(rng.choices(WORDS, k=rng.choice([3, 10, 40, 120])))
        path = "/v1/completions"
        if i % 3 == 0:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        if i % 4 == 1:
            body["stop"] = rng.sample([" the", "a", ".", "tar", "\n"], 2)
        if i % 5 == 2:
            body.update({"logprobs": True, "top_logprobs": 3} if "messages" in body else
                        {"logprobs": 3})
        if i % 7 == 3 and body["temperature"]:
            body["n"] = 2
        if i % 2:
            body["ignore_eos"] = True
        kinds.append((path, body))
    return kinds


class Result:
    """What a stream said, without what may differ: ids, times, how tokens fell into events."""

    def __init__(self):
        self.text, self.logprobs, self.finish = {}, {}, {}
        self.start = time.monotonic()
        self.first = self.end = 0.0
        self.events = 0

    def take(self, event):
        self.events += 1
        self.first = self.first or time.monotonic()
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        for c in event["choices"]:
            i = c["index"]
            text = c["delta"].get("content", "") if "delta" in c else c["text"]
            self.text[i] = self.text.get(i, "") + text
            lp = c.get("logprobs") or {}
            self.logprobs.setdefault(i, []).extend(
                lp["content"] if "content" in lp else
                zip(lp.get("tokens", []), lp.get("token_logprobs", []), lp.get("top_logprobs", [])))
            if c["finish_reason"]:
                self.finish[i] = (c["finish_reason"], c.get("stop_reason"))

    def said(self):
        return self.text, self.logprobs, self.finish


async def read_events(reader):
    """Yields the events of one chunked answer."""
    top = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in top.split(b"\r\n", 1)[0]:
        raise RuntimeError(top.decode() + (await reader.read(500)).decode())
    pending = b""
    while True:
        size = int(await reader.readline(), 16)
        data = await reader.readexactly(size + 2)
        if size == 0:
            return
        pending += data[:-2]
        *whole, pending = pending.split(b"\n\n")
        for event in whole:
            if event == b"data: [DONE]":
                yield None
            else:
                yield json.loads(event[6:])


async def stream(port, kind):
    path, body = kind
    for attempt in range(50):  # the listening queue may be full for a moment
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            break
        except OSError:
            await asyncio.sleep(0.05 * (attempt + 1))
    result, done = Result(), False
    writer.write(request_bytes(path, body))
    async for event in read_events(reader):
        if event is None:
            done = True
        else:
            result.take(event)
    result.end = time.monotonic()
    writer.close()
    if not done:
        raise RuntimeError("a stream ended without [DONE]")
    return result


async def probe(port, stop, latencies):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not stop.is_set():
        start = time.monotonic()
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        latencies.append(time.monotonic() - start)
        await asyncio.sleep(0.01)
    writer.close()


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))] if values else 0.0


async def load(server, n_clients, kinds):
    alone = [await stream(server.port, kind) for kind in kinds]
    stop, latencies = asyncio.Event(), []
    prober = asyncio.create_task(probe(server.port, stop, latencies))
    start = time.monotonic()
    got = await asyncio.gather(*(stream(server.port, kinds[i % len(kinds)])
                                 for i in range(n_clients)), return_exceptions=True)
    took = time.monotonic() - start
    stop.set()
    await prober
    failed = [g for g in got if isinstance(g, BaseException)]
    wrong = [i for i, g in enumerate(got) if not isinstance(g, BaseException) and
             g.said() != alone[i % len(kinds)].said()]
    good = [g for g in got if not isinstance(g, BaseException)]
    events = sum(g.events for g in good)
    print(f"{n_clients} clients, {len(kinds)} kinds: {len(failed)} failed, {len(wrong)} differ; "
          f"{took:.2f} s, {events / took:.0f} events/s")
    print(f"first event p50 {percentile([g.first - g.start for g in good], 50) * 1e3:.0f} ms, "
          f"p99 {percentile([g.first - g.start for g in good], 99) * 1e3:.0f} ms; "
          f"/health {len(latencies)} times, p50 {percentile(latencies, 50) * 1e3:.2f} ms, "
          f"p99 {percentile(latencies, 99) * 1e3:.2f} ms")
    for g in failed[:3]:
        print("failed:", repr(g))
    for i in wrong[:3]:
        print("differs:", kinds[i % len(kinds)], "\n  load:", got[i].said(), "\n  alone:",
              alone[i % len(kinds)].said())
    return not failed and not wrong


def run(n_clients, n_kinds, flags, seed=1):
    with Server("--disable-uvicorn-access-log", *flags) as server:
        ok = asyncio.run(load(server, n_clients, make_kinds(n_kinds, seed)))
        idle = wait_idle(server)
        if not idle:
            print("not idle afterwards:", {k: v for k, v in metrics(server).items() if v})
        return ok and idle


if __name__ == "__main__":
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[:own.index("--")], own[own.index("--") + 1:]
    p = argparse.ArgumentParser()
    p.add_argument("--clients", type=int, default=1000)
    p.add_argument("--kinds", type=int, default=60)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args(own)
    good = run(a.clients, a.kinds, flags, a.seed)
    print(f"{1 if good else 0} passed, {0 if good else 1} failed, 0 skipped")
    sys.exit(0 if good else 1)
