"""Speculation over HTTP: the same bytes with and without, vLLM's counters, and what is refused.

SPDX-License-Identifier: Apache-2.0"""

import json
import os
import shutil
import tempfile
import unittest

from common import golden, run
from wire import MODEL, Server, ask, main, metrics, post

COMPLETIONS = "/v1/completions"
DRAFT = {"model": "models/pebble-draft", "num_speculative_tokens": 4, "adaptive": False}
SUFFIX = {"method": "suffix", "num_speculative_tokens": 5, "adaptive": False}


def body(g, **more):
    return {"model": MODEL, "prompt": g["prompt_ids"], "max_tokens": 24, "seed": 5, "logprobs": 2,
            "temperature": 0.7, **more}


def requests():
    plain = [body(g) for g in golden()[:4]]
    return [*plain, body(golden()[0], n=3), body(golden()[1], stop=["e"], min_tokens=3),
            body(golden()[2], temperature=0, presence_penalty=0.5),
            body(golden()[3], allowed_token_ids=[300, 301, 302, 4], ignore_eos=True),
            body(golden()[0], structured_outputs={"regex": "[a-z]{2,9}( [a-z]{2,9}){2,5}"}),
            body(golden()[1], response_format={"type": "json_object"}, logprobs=None)]


def answers(*flags):
    with Server(*flags) as server:
        out = []
        for r in requests():
            a = post(server, COMPLETIONS, r)
            assert a.status == 200, a.body
            j = a.json()
            out.append((j["choices"], j["usage"]["completion_tokens"]))
        text = ask(server, "GET", "/metrics").body.decode()
        return out, metrics(server), text


class Speculation(unittest.TestCase):
    def test_answers_and_counters(self):
        want, _, text = answers()
        self.assertNotIn("spec_decode", text)
        for config in (DRAFT, SUFFIX):
            got, m, text = answers("--speculative-config", json.dumps(config))
            self.assertEqual(got, want, config)
            drafted = m["vllm:spec_decode_num_draft_tokens_total"]
            accepted = m["vllm:spec_decode_num_accepted_tokens_total"]
            self.assertGreater(drafted, 0)
            self.assertLessEqual(accepted, drafted)
            self.assertGreater(m["vllm:spec_decode_num_drafts_total"], 0)
            for i in range(config["num_speculative_tokens"]):
                self.assertIn("vllm:spec_decode_num_accepted_tokens_per_pos_total{engine=\"0\","
                              f"model_name=\"{MODEL}\",position=\"{i}\"}}", text)

    def test_standard_is_greedy_where_asked(self):
        r = [x for x in requests() if x["temperature"] == 0][0]
        with Server() as server:
            want = post(server, COMPLETIONS, r).json()["choices"]
        with Server("--speculative-config", json.dumps(DRAFT), "--rejection-sample-method",
                    "standard") as server:
            self.assertEqual(post(server, COMPLETIONS, r).json()["choices"], want)
            self.assertEqual(post(server, COMPLETIONS, requests()[0]).status, 200)


class Refusals(unittest.TestCase):
    def refuse(self, config, word, *more):
        code, _, err = run("generate", MODEL, "hi", "--speculative-config",
                           config if isinstance(config, str) else json.dumps(config), *more)
        self.assertNotEqual(code, 0)
        self.assertIn(word, err)

    def test_configurations(self):
        self.refuse({"method": "ngram"}, "num_speculative_tokens")
        self.refuse({"method": "ngram", "num_speculative_tokens": 99}, "from 1 to 32")
        self.refuse({"method": "eagle", "num_speculative_tokens": 2}, "eagle")
        self.refuse({"method": "ngram", "num_speculative_tokens": 2, "tokens": 2}, "'tokens'")
        self.refuse({"method": "ngram", "num_speculative_tokens": 2}, "'maybe'",
                    "--rejection-sample-method", "maybe")
        self.refuse({"method": "ngram", "num_speculative_tokens": 2}, "policy", "--policy",
                    "static")
        self.refuse(DRAFT, "sim", "--device", "sim")

    def test_another_tokenizer(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in os.listdir("models/pebble-draft"):
                shutil.copy(os.path.join("models/pebble-draft", name), folder)
            path = os.path.join(folder, "tokenizer.json")
            with open(path, encoding="utf-8") as f:
                t = json.load(f)
            by_id = {i: token for token, i in t["model"]["vocab"].items()}
            a, b = by_id[200], by_id[201]
            t["model"]["vocab"][a], t["model"]["vocab"][b] = 201, 200
            with open(path, "w", encoding="utf-8") as f:
                json.dump(t, f)
            self.refuse({"model": folder, "num_speculative_tokens": 2}, "token 200 differs")
        self.refuse({"model": "tests/golden/families/gpt2", "num_speculative_tokens": 2},
                    "vocabulary")


if __name__ == "__main__":
    main()
