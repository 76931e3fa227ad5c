"""run-batch: OpenAI batch lines in vLLM's format.

SPDX-License-Identifier: Apache-2.0"""

import json
import re
import tempfile
import unittest

from common import MODEL, golden, lines, main, run


def batch(rows, *args):
    """Runs the lines (strings are taken as they are); gives the output's objects."""
    with tempfile.NamedTemporaryFile("w") as i, tempfile.NamedTemporaryFile() as o:
        for row in rows:
            i.write(row if isinstance(row, str) else json.dumps(row) + "\n")
        i.flush()
        code, out, err = run("run-batch", "-i", i.name, "-o", o.name, "--model", MODEL, *args)
        assert (code, out) == (0, ""), err
        return lines(o.read().decode())


def line(name, url="/v1/completions", **body):
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, **body}}


class Answers(unittest.TestCase):
    def test_chat_and_completions_in_order(self):
        rows = []
        for i in range(12):
            rows.append(line(f"c{i}", prompt=f"{i} and", max_tokens=1 + i % 5, temperature=0))
            rows.append(line(f"m{i}", "/v1/chat/completions", max_tokens=4, temperature=0,
                             messages=[{"role": "user", "content": f"Say {i}"}]))
        rows.insert(3, "\n")
        got = batch(rows)
        self.assertEqual([g["custom_id"] for g in got],
                         [r["custom_id"] for r in rows if r != "\n"])
        for g in got:
            self.assertEqual(set(g), {"id", "custom_id", "response", "error"})
            self.assertEqual(set(g["response"]), {"status_code", "request_id", "body"})
            self.assertEqual((g["response"]["status_code"], g["error"]), (200, None))
            self.assertRegex(g["id"], r"^vllm-[0-9a-f]{32}$")
            self.assertRegex(g["response"]["request_id"], r"^vllm-batch-[0-9a-f]{32}$")
        self.assertEqual(len({g["id"] for g in got}), len(got))
        kinds = {g["response"]["body"]["object"] for g in got}
        self.assertEqual(kinds, {"text_completion", "chat.completion"})

    def test_token_ids_in_and_out(self):
        g = golden(1)[0]
        body = batch([line("t", prompt=g["prompt_ids"], max_tokens=64, temperature=0,
                           return_token_ids=True)])[0]["response"]["body"]
        self.assertEqual(body["choices"][0]["token_ids"], g["output_ids"])
        self.assertEqual(body["choices"][0]["prompt_token_ids"], g["prompt_ids"])

    def test_failures_are_lines(self):
        good = line("good", prompt="a", max_tokens=1)
        got = batch([
            line("stream", prompt="a", stream=True),
            line("url", "/v1/nothing"),
            line("embed", "/v1/embeddings", input="x"),
            line("param", prompt="a", temperature=-1),
            line("model", prompt="a") | {"body": {"model": "nobody", "prompt": "a"}},
            "{broken\n",
            '{"custom_id": 5, "method": "POST", "url": "/v1/completions", "body": {}}\n',
            good | {"method": "GET"},
            good,
        ])
        by = {g["custom_id"]: g for g in got}
        status = [g["response"]["status_code"] for g in got]
        self.assertEqual(status, [400, 400, 400, 400, 404, 400, 400, 400, 200])
        self.assertTrue(all(g["response"]["body"] is None for g in got[:-1]))
        self.assertEqual(by["stream"]["error"], "Request must not be sent in stream mode")
        self.assertTrue(re.match(r"URL /v1/nothing was used. Supported endpoints: ",
                                 by["url"]["error"]))
        self.assertEqual(by["embed"]["error"], "Model does not support endpoint: /v1/embeddings")
        self.assertEqual(by["param"]["error"]["error"]["code"], 400)
        self.assertIn("temperature", by["param"]["error"]["error"]["message"])
        self.assertEqual(by["model"]["error"]["error"]["message"],
                         "The model `nobody` does not exist.")


class Usage(unittest.TestCase):
    def test_sentences(self):
        for args, code, word in (
                (["--model", MODEL], 2, "-i"),
                (["-i", "/nonexistent", "-o", "/dev/null", "--model", MODEL], 1, "/nonexistent"),
                (["-i", "/dev/null", "-o", "/dev/null", "--model", "/nonexistent"], 1,
                 "/nonexistent")):
            got, _, err = run("run-batch", *args)
            self.assertEqual(got, code, err)
            self.assertIn(word, err)


if __name__ == "__main__":
    main()
