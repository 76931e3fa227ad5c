#!/usr/bin/env python3
"""Starts a server and says when it was ready, seen from outside, with the parts that it logged.

    bench/start.py RUNS COMMAND ...       such as 3 build/sluice serve MODEL --load-format dummy

SPDX-License-Identifier: Apache-2.0
"""
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

PORT, LIMIT_S = 8765, 40
PARTS = re.compile(r"CUDA start-up|Loading weights took|KV cache and buffers took")


def is_ready():
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def server(command):
    """A server that is ready; gives the seconds that it took and, after it has ended, its log."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        found, start = {}, time.perf_counter()
        p = subprocess.Popen(command + ["--port", str(PORT)], stdout=subprocess.DEVNULL, stderr=log)
        try:
            while not is_ready():
                if p.poll() is not None or time.perf_counter() - start > LIMIT_S:
                    log.seek(0)
                    sys.exit("the server did not start: " + log.read()[-2000:])
                time.sleep(0.005)
            found["seconds"] = time.perf_counter() - start
            yield found
            p.send_signal(signal.SIGTERM)
            p.wait(timeout=LIMIT_S)
        finally:
            p.kill()
            p.wait()
        log.seek(0)
        found["log"] = log.read()


def main():
    for _ in range(int(sys.argv[1])):
        with server(sys.argv[2:]) as found:
            pass
        print(f"ready {found['seconds']:.3f}")
        for line in found["log"].splitlines():
            if PARTS.search(line):
                print("   ", line.split("] ", 1)[-1])


if __name__ == "__main__":
    main()
