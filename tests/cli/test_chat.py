"""chat and complete, as a person at a terminal meets them.

SPDX-License-Identifier: Apache-2.0"""

import os
import pty
import re
import select
import subprocess
import tempfile
import time
import unittest

from common import BIN, MODEL, main, run

QUESTION = "How do I list the contents of a tar archive?"


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *args, home):
        self.master, slave = pty.openpty()
        env = dict(os.environ, HOME=home, TERM="xterm")
        self.process = subprocess.Popen([BIN, *args], stdin=slave, stdout=slave, stderr=slave,
                                        env=env, start_new_session=True,
                                        preexec_fn=lambda: __import__("fcntl").ioctl(
                                            0, __import__("termios").TIOCSCTTY, 0))
        os.close(slave)
        self.seen = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, pattern, seconds=60):
        """Reads until the pattern shows up; gives what came before it, itself included."""
        end = time.time() + seconds
        while not re.search(pattern, self.seen):
            if time.time() > end:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(self.master, 4096)
            except OSError:
                piece = b""
            if not piece:
                break
            self.seen += piece.decode(errors="replace")
        found = re.search(pattern, self.seen)
        assert found, (pattern, self.seen)
        before, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return before

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


class Chat(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.TemporaryDirectory()
        self.addCleanup(self.home.cleanup)

    def open(self, *args):
        t = Terminal("chat", MODEL, "--temperature", "0", *args, home=self.home.name)
        self.addCleanup(t.close)
        t.until("> ")
        return t

    def test_a_conversation(self):
        t = self.open()
        t.type(QUESTION + "\n")
        self.assertIn("tar", t.until(r"tokens/s.*\n").replace(QUESTION, ""))
        t.type("/reset\n/help\n")
        t.until("/undo")
        t.type("\x04")
        self.assertEqual(t.process.wait(60), 0)
        with open(self.home.name + "/.sluice_history", encoding="utf-8") as f:
            self.assertIn("tar", f.read().replace("\\040", " "))
        mode = os.stat(self.home.name + "/.sluice_history").st_mode & 0o777
        self.assertEqual(mode & 0o077, 0, "history is private")

    def test_interrupt_stops_the_answer_not_the_program(self):
        t = self.open("--ignore-eos")
        t.type("Tell me a long story\n")
        # a line typed before the editor is ready is echoed twice
        t.until(r"story\r?\n(?!Tell).{20}")
        t.type("\x03")
        t.until("stopped")
        t.type("/quit\n")
        self.assertEqual(t.process.wait(60), 0)

    def test_turns_are_remembered(self):
        t = self.open()
        with tempfile.TemporaryDirectory() as d:
            t.type("Hello!\n")
            t.until("tokens/s.*\n")
            t.type("What is a shell?\n")
            t.until("tokens/s.*\n")
            t.type(f"/save {d}/c.json\n")
            t.type("/quit\n")
            t.process.wait(60)
            with open(d + "/c.json", encoding="utf-8") as f:
                roles = re.findall(r'"role": "(\w+)"', f.read())
        self.assertEqual(roles, ["user", "assistant"] * 2)


class Pipes(unittest.TestCase):
    def test_lines_in_answers_out(self):
        code, out, err = run("chat", MODEL, "--temperature", "0", stdin=QUESTION + "\n")
        self.assertEqual((code, err), (0, ""))
        self.assertIn("tar", out)
        self.assertNotIn("> ", out)
        self.assertEqual(run("chat", MODEL, "--temperature", "0", "-q", QUESTION)[1], out)

    def test_complete(self):
        code, out, err = run("complete", MODEL, "--temperature", "0", "--max-tokens", "5", "-q",
                             "Once upon a")
        self.assertEqual((code, err), (0, ""))
        self.assertTrue(out.strip())

    def test_too_long(self):
        code, _, err = run("chat", MODEL, stdin="word " * 9000 + "\n")
        self.assertEqual(code, 1)
        self.assertEqual(len(err.strip().splitlines()), 1, err)


if __name__ == "__main__":
    main()
