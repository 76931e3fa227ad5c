"""What the command tests share: running the binary, servers on free ports, the golden prompts.

SPDX-License-Identifier: Apache-2.0"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

BIN = os.environ.get("SLUICE_BIN", "build/sluice")
MODEL = "models/pebble"
GOLDEN = "tests/golden/pebble/generate.jsonl"
TIMEOUT = 120


def run(*args, stdin=None, env=None, timeout=TIMEOUT):
    """Runs `sluice args...`; gives (exit code, stdout, stderr) as text."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "SLUICE_"))}
    for key in ("SLUICE_CPU_ISA",):
        if key in os.environ:
            environment[key] = os.environ[key]
    environment["HOME"] = tempfile.gettempdir()
    environment.update(env or {})
    done = subprocess.run([BIN, *map(str, args)], input=stdin, capture_output=True, text=True,
                          env=environment, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def golden(n=None):
    """The greedy golden prompts: dictionaries as tests/golden/pebble/README.md defines them."""
    with open(GOLDEN, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return rows[:n]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A `sluice serve` that is ready, on a free port."""

    def __init__(self, *args, model=MODEL):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen([BIN, "serve", model, "--port", str(self.port), *args],
                                        stdout=self.log, stderr=subprocess.STDOUT)
        self.wait_ready()

    def wait_ready(self):
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"serve ended with {self.process.returncode}:\n{self.output()}")
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(self.base + "/health", timeout=5) as r:
                    if r.status == 200:
                        return
            time.sleep(0.05)
        raise RuntimeError("serve was not ready in time:\n" + self.output())

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def post(self, path, body, timeout=TIMEOUT):
        request = urllib.request.Request(self.base + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as r:
            return json.load(r)

    def stop(self, sig=signal.SIGTERM, timeout=60):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def main():
    """unittest's main with its count on the last line; the exit code tells ctest."""
    program = unittest.main(module="__main__", exit=False, verbosity=1)
    sys.exit(0 if program.result.wasSuccessful() else 1)
