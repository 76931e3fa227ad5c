"""What the HTTP tests share: requests over plain sockets, so that a test can misbehave.

SPDX-License-Identifier: Apache-2.0"""

import json
import os
import socket
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "cli")]
os.chdir(os.path.join(HERE, "..", ".."))
if "--sluice" in sys.argv:  # python3 tests/http/test_x.py --sluice build/sluice
    at = sys.argv.index("--sluice")
    os.environ["SLUICE_BIN"] = sys.argv[at + 1]
    del sys.argv[at:at + 2]

from common import MODEL, Server, main  # noqa: E402,F401  (re-exported)

# Sim makes its tokens up at once, or with the pace of the slow device.
SIM = ["--device", "sim"]
SLOW = ["--device", "sim", "--sim-device", "cpu"]


def connect(server, timeout=30):
    s = socket.create_connection(("127.0.0.1", server.port), timeout=timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def head(method, path, body=b"", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if body or method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join([*lines, *headers]) + "\r\n\r\n").encode()


def request_bytes(path, body, headers=()):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, raw, headers) + raw


class Answer:
    """One HTTP answer, read from a socket; `rest` are bytes that came after it."""

    def __init__(self, sock, data=b""):
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                raise ConnectionError(f"closed after {data!r}")
            data += more
        top, data = data.split(b"\r\n\r\n", 1)
        first, *lines = top.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {k.lower(): v.strip() for k, v in (l.split(":", 1) for l in lines)}
        if self.status == 100:
            self.__init__(sock, data)
            return
        if self.headers.get("transfer-encoding") == "chunked":
            self.body, self.rest = self.read_chunks(sock, data)
        else:
            n = int(self.headers.get("content-length", 0))
            while len(data) < n:
                more = sock.recv(65536)
                if not more:
                    raise ConnectionError("closed inside a body")
                data += more
            self.body, self.rest = data[:n], data[n:]

    @staticmethod
    def read_chunks(sock, data):
        body = b""
        while True:
            while b"\r\n" not in data:
                more = sock.recv(65536)
                if not more:
                    raise ConnectionError("closed inside a stream")
                data += more
            size, data = data.split(b"\r\n", 1)
            n = int(size, 16)
            while len(data) < n + 2:
                more = sock.recv(65536)
                if not more:
                    raise ConnectionError("closed inside a chunk")
                data += more
            body, data = body + data[:n], data[n + 2:]
            if n == 0:
                return body, data

    def json(self):
        return json.loads(self.body)

    def events(self):
        out = []
        for line in self.body.decode().split("\n\n"):
            if line.startswith("data: {"):
                out.append(json.loads(line[6:]))
            elif line == "data: [DONE]":
                out.append(None)
        return out


def ask(server, method, path, body=None, headers=(), timeout=30):
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    with connect(server, timeout) as s:
        s.sendall(head(method, path, raw, headers) + raw)
        return Answer(s)


def post(server, path, body, headers=(), timeout=30):
    return ask(server, "POST", path, body, headers, timeout)


def metrics(server):
    """{name: sum over its labels}"""
    out = {}
    for line in ask(server, "GET", "/metrics").body.decode().splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{")[0]
            out[name] = out.get(name, 0) + float(value)
    return out


def wait_idle(server, seconds=5):
    """True when nothing runs, nothing waits and no KV block is held, within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        m = metrics(server)
        if not (m["vllm:num_requests_running"] or m["vllm:num_requests_waiting"] or
                m["vllm:kv_cache_usage_perc"]):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
