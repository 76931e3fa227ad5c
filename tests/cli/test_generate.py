"""generate: the golden prompts, order, formats, and what goes wrong.

SPDX-License-Identifier: Apache-2.0"""

import json
import os
import pty
import subprocess
import tempfile
import unittest

from common import BIN, MODEL, golden, lines, main, run

GREEDY = ["--temperature", "0"]


def jsonl(rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


class Golden(unittest.TestCase):
    """Greedy tokens on the device that runs by default, up to each prompt's first near tie."""

    def test_tokens(self):
        rows = [{"prompt": g["prompt_ids"], "max_tokens": 64, "temperature": 0} for g in golden()]
        code, out, err = run("generate", MODEL, "--json", stdin=jsonl(rows), timeout=280)
        self.assertEqual(code, 0, err)
        for g, got in zip(golden(), lines(out), strict=True):
            until = g["near_tie_at"] if g["near_tie_at"] is not None else len(g["output_ids"])
            self.assertEqual(got["outputs"][0]["token_ids"][:until], g["output_ids"][:until], g["id"])

    def test_chat_is_the_template(self):
        g = next(g for g in golden() if len(g.get("messages", [])) == 1 and not g.get("tools"))
        _, out, _ = run("generate", MODEL, "--chat", "--json", *GREEDY, g["messages"][0]["content"])
        self.assertEqual(lines(out)[0]["prompt_token_ids"], g["prompt_ids"])
        row = {"messages": g["messages"]}
        _, again, _ = run("generate", MODEL, "--json", *GREEDY, "--max-tokens", "80",
                          stdin=jsonl([row]))
        self.assertEqual(lines(again)[0]["outputs"], lines(out)[0]["outputs"])


class Output(unittest.TestCase):
    def test_one_prompt_gives_only_its_text(self):
        code, out, err = run("generate", MODEL, *GREEDY, "--max-tokens", "4", "The sun")
        self.assertEqual((code, err), (0, ""))
        _, j, _ = run("generate", MODEL, *GREEDY, "--max-tokens", "4", "The sun", "--json")
        self.assertEqual(out.rstrip("\n"), lines(j)[0]["outputs"][0]["text"].rstrip("\n"))

    def test_order_and_sources(self):
        prompts = [f"Number {i}" for i in range(30)]
        with tempfile.NamedTemporaryFile("w") as f, tempfile.NamedTemporaryFile() as o:
            f.write("\n".join(prompts[2:]) + "\n\n")
            f.flush()
            code, out, err = run("generate", MODEL, "--json", "--max-tokens", "3", *prompts[:2],
                                 "-i", f.name, "-o", o.name)
            self.assertEqual((code, out), (0, ""), err)
            got = lines(o.read().decode())
        self.assertEqual([g["prompt"] for g in got], prompts)
        self.assertEqual([g["index"] for g in got], list(range(30)))

    def test_parameters_by_line(self):
        rows = [{"id": "a", "prompt": "One two", "n": 3, "seed": 7, "temperature": 1, "max_tokens": 5},
                {"id": "b", "prompt": "One two", "logprobs": 2, "prompt_logprobs": 0, "max_tokens": 2},
                {"id": "c", "prompt": "A b c d", "stop": [" "], "max_tokens": 9, "temperature": 0},
                {"id": "d", "prompt": "x", "allowed_token_ids": [50], "max_tokens": 3},
                {"id": "e", "prompt": "x", "logit_bias": {"51": 100}, "max_tokens": 3,
                 "temperature": 0}]
        code, out, err = run("generate", MODEL, "--json", stdin=jsonl(rows))
        self.assertEqual(code, 0, err)
        a, b, c, d, e = lines(out)
        self.assertEqual([o["index"] for o in a["outputs"]], [0, 1, 2])
        self.assertEqual([len(t) for t in b["outputs"][0]["logprobs"]], [3, 3])
        self.assertEqual(len(b["prompt_logprobs"]), len(b["prompt_token_ids"]))
        self.assertIsNone(b["prompt_logprobs"][0])
        self.assertNotIn(" ", c["outputs"][0]["text"])
        self.assertEqual(d["outputs"][0]["token_ids"], [50, 50, 50])
        self.assertEqual(e["outputs"][0]["token_ids"], [51, 51, 51])
        self.assertEqual([r["id"] for r in (a, b, c, d, e)], ["a", "b", "c", "d", "e"])
        again = lines(run("generate", MODEL, "--json", stdin=jsonl(rows[:1]))[1])[0]
        self.assertEqual(again["outputs"], a["outputs"], "a seed decides")

    def test_beams_by_line(self):
        line = {"prompt": "The tar command", "n": 2, "best_of": 4, "use_beam_search": True,
                "max_tokens": 8, "length_penalty": 2.0, "early_stopping": "never"}
        bad = {"prompt": "x", "use_beam_search": True, "early_stopping": "late"}
        code, out, err = run("generate", MODEL, "--json", stdin=jsonl([line, bad, line]))
        a, b, c = lines(out)
        self.assertEqual((code, b["error"]), (1, '"early_stopping" must be true, false or "never"'),
                         err)
        self.assertEqual(a["outputs"], c["outputs"])
        best, second = a["outputs"]
        self.assertEqual((best["index"], second["index"]), (0, 1))
        self.assertGreater(best["score"], second["score"])
        self.assertAlmostEqual(best["score"], best["cumulative_logprob"] / 64, 6)
        self.assertEqual(a["usage"]["completion_tokens"], 16)

    def test_beams_by_flag(self):
        code, out, err = run("generate", MODEL, "--json", "--use-beam-search", "-n", "3",
                             "--max-tokens", "4", "The tar command")
        self.assertEqual(code, 0, err)
        outputs = lines(out)[0]["outputs"]
        self.assertEqual(len({o["text"] for o in outputs}), 3)
        self.assertEqual([o["score"] for o in outputs],
                         sorted((o["score"] for o in outputs), reverse=True))

    def test_one_bad_prompt_does_not_hurt_the_others(self):
        rows = [{"prompt": "fine", "max_tokens": 2}, {"prompt": "x", "temperature": 9}, {"prompt": []},
                {"prompt": [10**6]}, {"prompt": "x", "top_p": "y"}, {"nothing": 1},
                {"prompt": [5] * 5000}, {"prompt": "fine", "max_tokens": 2}]
        code, out, _ = run("generate", MODEL, "--json", *GREEDY, stdin=jsonl(rows) + "{broken\n")
        got = lines(out)
        self.assertEqual(code, 1)
        self.assertEqual(["error" in g for g in got], [False] + [True] * 6 + [False, True])
        self.assertEqual(got[0]["outputs"], got[7]["outputs"])
        self.assertIn("temperature", got[1]["error"])

    def test_progress_on_a_terminal_only(self):
        master, slave = pty.openpty()
        with subprocess.Popen([BIN, "generate", MODEL, "--max-tokens", "200", "--json", "-n", "4",
                               "--ignore-eos", "a", "b", "c"], stdout=subprocess.DEVNULL,
                              stderr=slave) as p:
            os.close(slave)
            seen = b""
            while True:
                try:
                    piece = os.read(master, 4096)
                except OSError:
                    break
                if not piece:
                    break
                seen += piece
            self.assertEqual(p.wait(60), 0)
        os.close(master)
        self.assertIn(b"tokens/s", seen)


class Failures(unittest.TestCase):
    def fails(self, *args, **kw):
        code, out, err = run("generate", *args, **kw)
        self.assertEqual((code, out), (1, ""), err)
        self.assertEqual(len(err.strip().splitlines()), 1, err)
        return err

    def test_models(self):
        self.assertIn("/nonexistent", self.fails("/nonexistent", "x"))
        with tempfile.TemporaryDirectory() as d:
            self.assertIn("config.json", self.fails(d, "x"))
            with open(d + "/config.json", "w", encoding="utf-8") as f:
                f.write("{")
            self.assertIn("config.json", self.fails(d, "x"))

    def test_files(self):
        self.assertIn("/nonexistent", self.fails(MODEL, "-i", "/nonexistent"))
        self.assertIn("/nonexistent/o", self.fails(MODEL, "-o", "/nonexistent/o", "x"))
        code, _, err = run("generate", MODEL, stdin="")
        self.assertEqual((code, "no prompt" in err), (2, True))

    def test_no_memory_for_kv(self):
        self.assertIn("KV", self.fails(MODEL, "--kv-cache-memory-bytes", "1k", "x"))


if __name__ == "__main__":
    main()
