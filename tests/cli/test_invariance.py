"""The same prompt gives the same tokens and logprobs, bit for bit, whichever way it goes in: generate,
HTTP alone, HTTP among others, streaming, run-batch, chunked, with its prefix cached, after preemption.

SPDX-License-Identifier: Apache-2.0"""

import json
import re
import tempfile
import threading
import unittest
import urllib.request
from struct import pack

from common import MODEL, Server, golden, lines, main, run

N = 12  # golden prompts; all lengths are among the first ones
MAX_TOKENS = 24


def bits(x):
    return pack("<f", x)


def prompts():
    rows = golden()
    longest = sorted(rows, key=lambda g: -len(g["prompt_ids"]))[:2]
    return rows[:N] + [g for g in longest if g not in rows[:N]]


def generate(*args, rows=None):
    rows = rows or [{"prompt": g["prompt_ids"], "max_tokens": MAX_TOKENS, "temperature": 0,
                     "logprobs": 0} for g in prompts()]
    code, out, err = run("generate", MODEL, "--json", *args,
                         stdin="".join(json.dumps(r) + "\n" for r in rows), timeout=200)
    assert code == 0, err
    result = []
    for got in lines(out):
        choice = got["outputs"][0]
        result.append((choice["token_ids"], [bits(t[0]["logprob"]) for t in choice["logprobs"]]))
    return result


def body(g, **more):
    return {"model": MODEL, "prompt": g["prompt_ids"], "max_tokens": MAX_TOKENS, "temperature": 0,
            "logprobs": 0, "return_token_ids": True, **more}


def from_choice(choice):
    return choice["token_ids"], [bits(x) for x in choice["logprobs"]["token_logprobs"]]


class SameBits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.want = generate()

    def same(self, got, what):
        for g, w, h in zip(prompts(), self.want, got, strict=True):
            self.assertEqual(w[0], h[0], (what, g["id"], "tokens"))
            self.assertEqual(w[1], h[1], (what, g["id"], "logprobs"))

    def test_alone_through_generate(self):
        for g, w in list(zip(prompts(), self.want))[:3]:
            alone = generate(rows=[{"prompt": g["prompt_ids"], "max_tokens": MAX_TOKENS,
                                    "temperature": 0, "logprobs": 0}])[0]
            self.assertEqual(alone, w, g["id"])

    def test_over_http(self):
        with Server() as s:
            alone = [from_choice(s.post("/v1/completions", body(g))["choices"][0])
                     for g in prompts()]
            self.same(alone, "HTTP, one at a time")
            again = [from_choice(s.post("/v1/completions", body(g))["choices"][0])
                     for g in prompts()]
            self.same(again, "HTTP, prefix cached")
            got = [None] * len(prompts())

            def ask(i, g):
                got[i] = from_choice(s.post("/v1/completions",
                                            body(g, cache_salt="s"))["choices"][0])

            threads = [threading.Thread(target=ask, args=(i, g)) for i, g in enumerate(prompts())]
            for t in threads:
                t.start()
            for t in threads:
                t.join(200)
            self.same(got, "HTTP, all at once, cold cache")
            self.assertEqual(s.stop(), 0)

    def test_through_run_batch(self):
        with tempfile.NamedTemporaryFile("w") as i, tempfile.NamedTemporaryFile() as o:
            for g in prompts():
                i.write(json.dumps({"custom_id": g["id"], "method": "POST",
                                    "url": "/v1/completions", "body": body(g)}) + "\n")
            i.flush()
            code, _, err = run("run-batch", "-i", i.name, "-o", o.name, "--model", MODEL)
            self.assertEqual(code, 0, err)
            rows = lines(o.read().decode())
        self.same([from_choice(r["response"]["body"]["choices"][0]) for r in rows], "run-batch")

    def test_chunked_small_and_uncached(self):
        self.same(generate("--max-num-batched-tokens", "16", "--max-num-seqs", "8"), "chunks of 16")
        self.same(generate("--no-enable-prefix-caching", "--no-enable-chunked-prefill"),
                  "prefill first")

    def test_after_preemption(self):
        """Many short prompts with long answers in a pool that holds a few of them."""
        short = [g for g in golden() if len(g["prompt_ids"]) <= 40][:16]
        more = {"max_tokens": 80, "ignore_eos": True}
        want = generate(rows=[{"prompt": g["prompt_ids"], "temperature": 0, "logprobs": 0, **more}
                              for g in short])
        got = [None] * len(short)
        with Server("--num-gpu-blocks-override", "24", "--max-model-len", "160") as s:

            def ask(i):
                got[i] = from_choice(s.post("/v1/completions", body(short[i], **more))["choices"][0])

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(short))]
            for t in threads:
                t.start()
            for t in threads:
                t.join(200)
            with urllib.request.urlopen(s.base + "/metrics", timeout=10) as r:
                metrics = r.read().decode()
        n = float(re.search(r"(?m)^vllm:num_preemptions_total\{[^}]*\} (\S+)", metrics).group(1))
        self.assertGreater(n, 0, "nobody was preempted")
        self.assertEqual(got, want)

    def test_threads(self):
        self.same(generate("--threads", "1"), "one thread")


if __name__ == "__main__":
    main()
