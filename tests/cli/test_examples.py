"""The examples run, and a program that only knows what is installed builds and runs.

SPDX-License-Identifier: Apache-2.0"""

import os
import subprocess
import unittest

from common import BIN, MODEL, main

BUILD = os.path.dirname(BIN)


def example(name, *args):
    return subprocess.run([f"{BUILD}/example_{name}", *args], capture_output=True, text=True,
                          timeout=60)


class Examples(unittest.TestCase):
    def test_offline_batch(self):
        done = example("offline_batch", MODEL, "Once upon a time", "The capital of")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        first, second, _ = done.stdout.split("\n---\n")
        self.assertTrue(first.startswith("Once upon a time") and len(first) > 20, first)
        self.assertTrue(second.startswith("The capital of") and len(second) > 18, second)

    def test_stream(self):
        done = example("stream", MODEL)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("wc -l", done.stdout)

    def test_errors_are_sentences(self):
        for name in ("offline_batch", "stream"):
            done = example(name, "/nonexistent", "x")
            self.assertEqual(done.returncode, 1)
            self.assertIn("/nonexistent", done.stderr)

    def test_short(self):
        for name in os.listdir("examples"):
            if name.endswith(".c"):
                with open("examples/" + name, encoding="utf-8") as f:
                    self.assertLess(len(f.readlines()), 60, name)


if __name__ == "__main__":
    main()
