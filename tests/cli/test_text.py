"""tokenize, detokenize, render: JSON Lines in and out.

SPDX-License-Identifier: Apache-2.0"""

import json
import subprocess
import tempfile
import unittest

from common import BIN, MODEL, golden, lines, main, run


def answers(command, rows, *args):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    code, out, err = run(command, *args, stdin=text)
    assert code == 0, err
    return lines(out)


class Golden(unittest.TestCase):
    def test_prompts_render_and_encode(self):
        chats = [g for g in golden() if "messages" in g]
        self.assertGreater(len(chats), 40)
        rows = [{"messages": g["messages"], "add_generation_prompt": True,
                 **({"tools": g["tools"]} if g.get("tools") else {})} for g in chats]
        for g, got in zip(chats, answers("render", rows, MODEL), strict=True):
            self.assertEqual(got, {"text": g["prompt"]}, g["id"])
        rows = [{"text": g["prompt"], "add_special_tokens": False} for g in chats]
        for g, got in zip(chats, answers("tokenize", rows, MODEL), strict=True):
            self.assertEqual(got, {"ids": g["prompt_ids"]}, g["id"])

    def test_plain_texts_get_their_bos(self):
        plain = [g for g in golden() if "messages" not in g]
        rows = [{"text": g["prompt"]} for g in plain]
        for g, got in zip(plain, answers("tokenize", rows, MODEL), strict=True):
            self.assertEqual(got, {"ids": g["prompt_ids"]}, g["id"])

    def test_outputs_decode(self):
        rows = [{"ids": g["output_ids"], "skip_special_tokens": False} for g in golden()]
        for g, got in zip(golden(), answers("detokenize", rows, MODEL), strict=True):
            self.assertEqual(got, {"text": g["output_text"]}, g["id"])
        bare = answers("detokenize", [{"ids": golden(1)[0]["output_ids"]}], MODEL)[0]["text"]
        self.assertFalse(bare.endswith("<|im_end|>"))


class Lines(unittest.TestCase):
    def test_round_trip(self):
        texts = ["", "héllo", "日本語 🎉", "a\u0000b", "tab\tnew\nline", " lead", "x" * 5000, "\\u00e9"]
        ids = answers("tokenize", [{"text": t, "add_special_tokens": False} for t in texts], MODEL)
        back = answers("detokenize", ids, MODEL)
        self.assertEqual([b["text"] for b in back], texts)

    def test_errors_are_lines_and_the_rest_goes_on(self):
        rows = ["not json\n", {"text": 5}, {"no": 1}, "[1]\n", {"text": "a", "add_special_tokens": 3},
                '{"text": "\\ud800"}\n', "\n", {"text": "fine"}]
        got = answers("tokenize", rows, MODEL)
        self.assertEqual([("error" in g) for g in got], [True] * 6 + [False])
        got = answers("detokenize", [{"ids": [-1]}, {"ids": "x"}, {"ids": [10**12]}, {"ids": [99999]},
                                     {"ids": [1.5]}, {"ids": []}], MODEL)
        self.assertEqual([("error" in g) for g in got], [True] * 5 + [False])
        got = answers("render", [{"messages": [{"role": "nobody"}]}, {}], MODEL)
        self.assertTrue(all(set(g) in ({"error"}, {"text"}) for g in got), got)

    def test_line_by_line(self):
        """Another program can talk to it: each answer comes before the next question."""
        with subprocess.Popen([BIN, "tokenize", MODEL], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as p:
            for word in ("one", "two"):
                p.stdin.write(json.dumps({"text": word}) + "\n")
                p.stdin.flush()
                self.assertIn("ids", json.loads(p.stdout.readline()))
            p.stdin.close()
            self.assertEqual(p.wait(10), 0)


class Templates(unittest.TestCase):
    def render(self, template, row, *args):
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as f:
            f.write(template)
            f.flush()
            return answers("render", [row], "--chat-template", f.name, *args)[0]

    def test_every_key_is_a_variable(self):
        got = self.render("{{ a }}-{{ b.c }}-{{ d is defined }}", {"a": 1, "b": {"c": "x"}})
        self.assertEqual(got, {"text": "1-x-False"})

    def test_now(self):
        got = self.render("{{ strftime_now('%d %b %Y') }}", {"messages": []}, "--now",
                          "2024-07-26T12:00:00")
        self.assertEqual(got, {"text": "26 Jul 2024"})

    def test_raise_exception(self):
        got = self.render("{{ raise_exception('no ' ~ x) }}", {"x": "way"})
        self.assertIn("no way", got["error"])

    def test_needs_one_of_both(self):
        code, _, err = run("render", stdin="{}\n")
        self.assertEqual(code, 2)
        self.assertIn("--chat-template", err)
        code, _, err = run("tokenize", "/nonexistent", stdin="")
        self.assertEqual(code, 1)
        self.assertEqual(len(err.strip().splitlines()), 1)


if __name__ == "__main__":
    main()
