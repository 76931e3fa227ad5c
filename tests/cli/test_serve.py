"""serve as a program: its first and last words, signals, exit codes.

SPDX-License-Identifier: Apache-2.0"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

from common import BIN, MODEL, Server, free_port, main, run

SLOW = ["--device", "sim", "--sim-device", "cpu"]


def stream(server, max_tokens, got):
    """Reads one stream to its end; appends its last line, or the exception."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": max_tokens, "ignore_eos": True,
            "stream": True, "temperature": 0}
    request = urllib.request.Request(server.base + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as r:
            text = r.read().decode()
        got.append(text)
    except OSError as e:
        got.append(e)


class Death(unittest.TestCase):
    """The device dies under requests that run, others that wait, and some that come later."""

    def ask(self, server, got):
        body = {"model": MODEL, "prompt": [5] * 20, "max_tokens": 1000, "ignore_eos": True}
        try:
            got.append(server.post("/v1/completions", body, timeout=30))
        except urllib.error.HTTPError as e:
            got.append((e.code, e.read().decode()))
        except OSError as e:
            got.append(e)

    def test_everybody_is_told_and_the_process_ends(self):
        with Server("--device", "sim", "--sim-step-ms", "20", "--sim-fail-step", "60",
                    "--max-num-seqs", "3") as s:
            whole, streamed = [], []
            calls = [threading.Thread(target=stream, args=(s, 1000, streamed))]
            calls += [threading.Thread(target=self.ask, args=(s, whole)) for _ in range(8)]
            for t in calls:
                t.start()
                time.sleep(0.2 if t is calls[0] else 0)  # the stream begins
            for t in calls:
                t.join(30)
                self.assertFalse(t.is_alive())
            self.assertEqual(len(whole), 8)
            for code, text in whole:  # two run, the others wait
                self.assertEqual(code, 503, text)
                self.assertIn("step 60 fails", text)
            self.assertIn("step 60 fails", str(streamed[0]))
            self.assertEqual(s.process.wait(10), 1)
            self.assertIn("The engine is dead: sim: step 60 fails", s.output())


class Start(unittest.TestCase):
    def test_three_lines_to_paste(self):
        with Server() as s:
            out = s.output()
            curl = next(l for l in out.splitlines() if l.strip().startswith("curl "))
            self.assertIn(f"http://127.0.0.1:{s.port}/ is the status page", out)
            self.assertIn("Ctrl-C stops", out)
            done = subprocess.run(["bash", "-c", curl.strip() + " -sS"], capture_output=True,
                                  text=True, timeout=60, check=True)
            answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
            self.assertIn("tar", answer)
            with urllib.request.urlopen(s.base + "/", timeout=10) as page:
                self.assertEqual(page.status, 200)
                self.assertIn("text/html", page.headers["Content-Type"])
            self.assertEqual(s.stop(), 0)

    def test_log_lines(self):
        with Server("--max-num-seqs", "7") as s:
            out = s.output()
            self.assertRegex(out, r"(?m)^INFO \d\d-\d\d \d\d:\d\d:\d\d \[\w+\.c:\d+\] ")
            at = 0
            for words in ("vLLM server version ", "serving model models/pebble",
                          "non-default args: {", "'max_num_seqs': 7",
                          "Resolved architecture: LlamaForCausalLM", "Using max model len 4096",
                          "Starting to load model models/pebble...", "Loading weights took",
                          "Model loading took", "Available KV cache memory: ",
                          "Maximum concurrency for 4,096 tokens per request", "init engine (profile",
                          "Supported tasks: ['generate']", "Starting vLLM server on http://127.0.0.1:",
                          "Available routes are:", "Route: /v1/completions, Methods: POST"):
                self.assertIn(words, out[at:])
                at = out.index(words, at)
            self.assertEqual(s.stop(signal.SIGINT), 0)

    def test_warns_when_open_to_all(self):
        for args, warned in ((["--host", "0.0.0.0"], True), (["--host", "127.0.0.1"], False),
                             (["--host", "0.0.0.0", "--api-key", "k"], False)):
            with Server(*args) as s:
                self.assertEqual("without --api-key" in s.output(), warned, args)

    def test_unix_socket(self):
        with tempfile.TemporaryDirectory() as d:
            path = d + "/s"
            with subprocess.Popen([BIN, "serve", MODEL, "--uds", path], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True) as p:
                try:
                    for _ in range(200):
                        if os.path.exists(path):
                            break
                        time.sleep(0.05)
                    with socket.socket(socket.AF_UNIX) as c:
                        c.connect(path)
                        c.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        self.assertIn(b"200 OK", c.recv(1000))
                finally:
                    p.terminate()
                out = p.communicate(timeout=30)[0]
            self.assertEqual(p.returncode, 0, out)
            self.assertIn("curl --unix-socket " + path, out)


class Failures(unittest.TestCase):
    def test_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            code, _, err = run("serve", MODEL, "--port", port)
        self.assertEqual(code, 1)
        last = err.strip().splitlines()[-1]
        self.assertTrue(last.startswith("sluice: ") and str(port) in last, last)

    def test_bad_model_and_template(self):
        for args, word in ((["/nonexistent"], "/nonexistent"),
                           ([MODEL, "--chat-template", "{% if %}"], "template"),
                           ([MODEL, "--ssl-certfile", "/nonexistent", "--ssl-keyfile", "/x"],
                            "/nonexistent"),
                           ([MODEL, "--host", "256.1.1.1"], "256.1.1.1")):
            code, _, err = run("serve", "--port", free_port(), *args)
            self.assertEqual(code, 1, err)
            self.assertIn(word, err.strip().splitlines()[-1])


class Ends(unittest.TestCase):
    def test_sigterm_drains(self):
        """What runs finishes, what comes is refused, the exit code is 0."""
        with Server() as s:
            got, n = [], 300
            t = threading.Thread(target=stream, args=(s, n, got))
            t.start()
            time.sleep(0.3)
            s.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            refused = None
            try:
                s.post("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 1})
            except urllib.error.HTTPError as e:
                refused = e.code
                e.close()
            except OSError:
                refused = "closed"
            t.join(60)
            self.assertEqual(s.process.wait(60), 0)
            self.assertIsInstance(got[0], str, got)
            self.assertTrue(got[0].rstrip().endswith("data: [DONE]"))
            self.assertEqual(got[0].count('"finish_reason":"length"'), 1)
            self.assertIn(refused, (503, "closed"))

    def test_second_sigterm_ends_at_once(self):
        with Server(*SLOW, "--max-model-len", "4096") as s:
            got = []
            t = threading.Thread(target=stream, args=(s, 4000, got))
            t.start()
            time.sleep(0.3)
            s.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            self.assertIsNone(s.process.poll(), "it drains")
            started = time.time()
            s.process.send_signal(signal.SIGTERM)
            self.assertEqual(s.process.wait(10), 0)
            self.assertLess(time.time() - started, 3)
            t.join(10)

    def test_shutdown_timeout_zero(self):
        with Server(*SLOW, "--shutdown-timeout", "0") as s:
            got = []
            t = threading.Thread(target=stream, args=(s, 4000, got))
            t.start()
            time.sleep(0.3)
            started = time.time()
            self.assertEqual(s.stop(), 0)
            self.assertLess(time.time() - started, 3)
            t.join(10)

    def test_interrupt_while_loading(self):
        p = subprocess.Popen([BIN, "serve", MODEL, "--port", str(free_port())],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.02)
        p.send_signal(signal.SIGINT)
        self.assertIn(p.wait(20), (0, 130, -2))


if __name__ == "__main__":
    main()
