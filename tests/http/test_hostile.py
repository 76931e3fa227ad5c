"""Clients that misbehave: the server answers with one clear error, or lets go of them, and lives.

SPDX-License-Identifier: Apache-2.0"""

import json
import os
import random
import socket
import struct
import time
import unittest

from wire import MODEL, SIM, SLOW, Answer, Server, ask, connect, head, main, metrics, post
from wire import request_bytes, wait_idle

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = {"model": MODEL, "prompt": "a", "max_tokens": 3000, "ignore_eos": True}


class Bodies(unittest.TestCase):
    """What cannot be read is a 400 in OpenAI's shape, and hurts nobody."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*SIM)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def refused(self, path, raw, status=400):
        a = post(self.server, path, raw)
        self.assertEqual(a.status, status, a.body)
        error = a.json()["error"]
        self.assertEqual(error["code"], status)
        self.assertTrue(error["message"])
        self.assertIn("type", error)
        self.assertIn("param", error)
        return error

    def test_not_json(self):
        for raw in (b"", b"{", b"null", b"[]", b"5", b'"a"', b"{'prompt': 1}", b"\x00", b"\xff\xfe",
                    b'{"prompt": "a"', b'{"prompt": "a"} x', b'{"prompt": nan}', b"{}" * 3,
                    b'{"prompt": "\xc3\x28"}', b'{"prompt": "\xed\xa0\x80"}', b"[" * 100000,
                    b'{"a":' * 50000, b'{"prompt": 1e999}', b'{"n": 123456789012345678901234567890}'):
            self.refused(COMPLETIONS, raw)
            self.refused(CHAT, raw)

    def test_wrong_types(self):
        wrong = [True, 1, -1, 1.5, "x", "", [], [[]], {}, {"a": 1}, [None], None, 10**18, -10**18,
                 "\u0000", ["a", 1], 1e300]
        fields = ("prompt messages model n max_tokens temperature top_p top_k min_p seed stop stream "
                  "stream_options logprobs top_logprobs echo logit_bias stop_token_ids min_tokens "
                  "presence_penalty frequency_penalty repetition_penalty allowed_token_ids bad_words "
                  "truncate_prompt_tokens prompt_logprobs priority cache_salt request_id tools "
                  "tool_choice chat_template chat_template_kwargs response_format tokens "
                  "stream_interval repetition_detection logprob_token_ids documents").split()
        for field in fields:
            for value in wrong:
                for path, good in ((COMPLETIONS, {"prompt": "a"}), ("/tokenize", {"prompt": "a"}),
                                   (CHAT, {"messages": [{"role": "user", "content": "a"}]}),
                                   ("/detokenize", {"tokens": [1]})):
                    body = {"max_tokens": 2, **good, field: value}
                    a = post(self.server, path, body)
                    self.assertTrue(a.status in (200, 400, 404, 501), (path, body, a.body))
                    if a.status != 200:
                        self.assertEqual(a.json()["error"]["code"], a.status)

    def test_messages_of_every_shape(self):
        for messages in ([], [1], [[]], [{}], [{"role": 5}], [{"role": "user"}],
                         [{"role": "user", "content": {}}], [{"role": "user", "content": [1]}],
                         [{"role": "user", "content": [{"type": "image_url"}]}],
                         [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
                         [{"role": "assistant", "tool_calls": 5}],
                         [{"role": "tool", "content": None}]):
            a = post(self.server, CHAT, {"messages": messages, "max_tokens": 2})
            self.assertTrue(a.status in (200, 400), a.body)

    def test_absurd_numbers(self):
        for extra in ({"best_of": 10**9}, {"best_of": -1}, {"n": 2, "best_of": 1},
                      {"prompt": ["a"] * 1000, "best_of": 1000}, {"best_of": "many"},
                      {"use_beam_search": True, "n": 5000}, {"use_beam_search": True, "n": 0},
                      {"use_beam_search": True, "best_of": 10**6},
                      {"use_beam_search": True, "length_penalty": 1e30},
                      {"use_beam_search": True, "early_stopping": "soon"},
                      {"use_beam_search": True, "early_stopping": [1]},
                      {"use_beam_search": True, "stop": ["a"]},
                      {"use_beam_search": True, "stop_token_ids": list(range(1000))},
                      {"n": 10**9}, {"n": 20000}, {"logprobs": 10**6}, {"max_tokens": 10**9},
                      {"prompt_logprobs": 5000}, {"temperature": 1e30}, {"top_k": -5},
                      {"stop": ["a"] * 1000}, {"stop": [""]}, {"bad_words": [""]},
                      {"logit_bias": {"999999": 1}},
                      {"allowed_token_ids": []}, {"allowed_token_ids": [-1]}, {"min_tokens": 100},
                      {"prompt": ["a"] * 1025}, {"prompt": ["a"] * 1000, "n": 1000},
                      {"prompt": [1] * 5000}, {"prompt": [99999999]}, {"prompt": [-1]},
                      {"prompt": []}, {"prompt": [[]]}, {"truncate_prompt_tokens": 0}):
            body = {"prompt": "a", "max_tokens": 2, **extra}
            self.assertEqual(post(self.server, COMPLETIONS, body).status, 400, extra)

    def test_prompt_past_the_context(self):
        error = self.refused(COMPLETIONS, json.dumps({"prompt": "word " * 5000}).encode())
        self.assertIn("maximum context length is 4096 tokens", error["message"])
        error = self.refused(COMPLETIONS, json.dumps({"prompt": "a" * 10_000_000}).encode())
        self.assertIn("characters", error["message"])
        error = self.refused(COMPLETIONS, json.dumps({"prompt": "a", "max_tokens": 5000}).encode())
        self.assertIn("you requested 5000 output tokens", error["message"])

    def test_content_type(self):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
            with connect(self.server) as s:
                s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
                          "Content-Length: 2\r\n\r\n{}".encode())
                a = Answer(s)
            self.assertEqual(a.status, 400)
            self.assertIn("Only 'application/json' is allowed", a.json()["error"]["message"])

    def test_many_values(self):
        self.refused(COMPLETIONS, b'{"prompt": [' + b"1," * 4_000_000 + b"1]}")

    def test_large_but_allowed(self):
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
                "ignored": "x" * 15_000_000}
        self.assertEqual(post(self.server, CHAT, body).status, 200)

    def test_too_large(self):
        raw = b'{"prompt": "' + b"a" * 50_000_000 + b'"}'
        a = post(self.server, COMPLETIONS, raw)
        self.assertEqual(a.status, 413)
        self.assertEqual(a.json()["error"]["code"], 413)
        with connect(self.server) as s:  # chunked: nobody knows how long it will be
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                      b"Content-Type: application/json\r\n\r\n")
            chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
            answer = b""
            try:
                for _ in range(50):
                    s.sendall(chunk)
                answer = s.recv(65536)
            except OSError:
                pass  # the server need not read all of it
            self.assertTrue(answer == b"" or b" 413 " in answer[:20], answer[:100])
        with connect(self.server) as s:  # Expect: 100-continue: refused before it is sent
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                      b"Content-Type: application/json\r\nContent-Length: 20000000\r\n\r\n")
            s.settimeout(1)
            try:
                s.sendall(b"a" * 20_000_000)
            except OSError:
                pass
            s.settimeout(30)
            self.assertEqual(Answer(s).status, 413)
        self.assertEqual(ask(self.server, "GET", "/health").status, 200)

    def test_expect_continue(self):
        raw = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        with connect(self.server) as s:
            s.sendall(head("POST", COMPLETIONS, raw, ["Expect: 100-continue"]))
            self.assertIn(b"100 Continue", s.recv(1000))
            s.sendall(raw)
            self.assertEqual(Answer(s).status, 200)


class Wire(unittest.TestCase):
    """HTTP that is not HTTP."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*SIM)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def setUp(self):
        self.addCleanup(lambda: self.assertEqual(ask(self.server, "GET", "/health").status, 200))

    def send(self, raw):
        with connect(self.server) as s:
            s.sendall(raw)
            s.shutdown(socket.SHUT_WR) if raw.endswith(b"!!") else None
            data = b""
            try:
                while more := s.recv(65536):
                    data += more
                    if b"\r\n\r\n" in data:
                        break
            except OSError:
                pass
            return data

    def test_nonsense(self):
        for raw in (b"\r\n\r\n", b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                    b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc!!",
                    b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n"):
            data = self.send(raw)
            if data:
                self.assertTrue(data.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), (raw, data[:80]))

    def test_errors_have_our_form(self):
        data = self.send(b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
        self.assertIn(b'{"error":{"message":', data)
        data = self.send(b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b" 405 ", data[:20])
        with connect(self.server) as s:  # not only as a connection's first request
            s.sendall(head("GET", "/version"))
            self.assertEqual(Answer(s).status, 200)
            s.sendall(b"QUERY /version HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(Answer(s).json()["error"]["code"], 405)

    def test_header_floods(self):
        data = self.send(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n")
        self.assertTrue(data == b"" or b" 4" in data[:13], data[:80])
        data = self.send(b"GET / HTTP/1.1\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n")
        self.assertTrue(data == b"" or b" 4" in data[:13], data[:80])
        data = self.send(b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n")
        self.assertTrue(data == b"" or b" 4" in data[:13], data[:80])

    def test_pipelining(self):
        with connect(self.server) as s:
            s.sendall(head("GET", "/health") * 3 +
                      request_bytes("/tokenize", {"prompt": "a"}) + head("GET", "/version"))
            rest = b""
            for want in ("", "", "", "tokens", "version"):
                a = Answer(s, rest)
                rest = a.rest
                self.assertEqual(a.status, 200)
                self.assertIn(want, a.body.decode())

    def test_byte_by_byte(self):
        raw = request_bytes(COMPLETIONS, {"prompt": "a", "max_tokens": 2})
        with connect(self.server) as s:
            for i in range(len(raw)):
                s.sendall(raw[i:i + 1])
            self.assertEqual(Answer(s).status, 200)

    def test_random_bytes(self):
        rng = random.Random(7)
        for _ in range(200):
            with connect(self.server) as s:
                try:
                    s.sendall(rng.randbytes(rng.randrange(2000)) + b"\r\n\r\n")
                    s.settimeout(0.02)
                    s.recv(100)
                except OSError:
                    pass


class Leavers(unittest.TestCase):
    """A client that goes away, in whatever state, frees what its request held."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*SLOW, "--max-num-seqs", "4")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def leave(self, body, wait, reset=False):
        s = connect(self.server)
        s.sendall(request_bytes(COMPLETIONS, body))
        time.sleep(wait)
        if reset:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()

    def test_before_the_first_byte(self):
        for stream in (False, True):
            for wait in (0, 0.01, 0.3):
                for reset in (False, True):
                    self.leave({**LONG, "stream": stream}, wait, reset)
        self.assertTrue(wait_idle(self.server))

    def test_in_the_middle_of_a_stream(self):
        for _ in range(4):
            s = connect(self.server)
            s.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": True}))
            self.assertIn(b"data: ", s.recv(65536) + s.recv(65536))
            s.close()
        self.assertTrue(wait_idle(self.server))

    def test_while_queued(self):
        runners = []
        for _ in range(4):  # these fill --max-num-seqs
            s = connect(self.server)
            s.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": True}))
            s.recv(1)
            runners.append(s)
        queued = []
        for stream in (False, True) * 5:
            s = connect(self.server)
            s.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": stream}))
            queued.append(s)
        time.sleep(0.3)
        self.assertEqual(metrics(self.server)["vllm:num_requests_waiting"], 10)
        for s in queued:
            s.close()
        time.sleep(0.3)
        m = metrics(self.server)
        self.assertEqual(m["vllm:num_requests_waiting"], 0)
        self.assertEqual(m["vllm:num_requests_running"], 4)
        for s in runners:
            s.close()
        self.assertTrue(wait_idle(self.server))

    def test_two_hundred_at_once(self):
        socks = []
        for i in range(200):
            s = connect(self.server)
            s.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": bool(i % 2), "n": 1}))
            socks.append(s)
        time.sleep(0.5)
        for s in socks:
            s.close()
        self.assertTrue(wait_idle(self.server, 5))

    def test_half_a_body(self):
        raw = request_bytes(COMPLETIONS, LONG)
        for cut in (1, 20, len(raw) - 1):
            s = connect(self.server)
            s.sendall(raw[:cut])
            s.close()
        self.assertTrue(wait_idle(self.server))


def text_of(events):
    return "".join(e["choices"][0]["text"] for e in events if e)


class SlowReaders(unittest.TestCase):
    """Who does not read is given up; the others do not notice."""

    def test_stopped_readers(self):
        with Server(*SIM) as server:
            body = {"model": MODEL, "prompt": "a", "max_tokens": 40, "seed": 3, "stream": True,
                    "ignore_eos": True}
            alone = post(server, COMPLETIONS, body).events()
            hogs = []
            for _ in range(20):  # 4,000 tokens with 20 logprobs: some 10 MB each
                s = socket.socket()
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                s.connect(("127.0.0.1", server.port))
                s.sendall(request_bytes(COMPLETIONS, {**LONG, "max_tokens": 4000, "logprobs": 20,
                                                      "stream": True}))
                hogs.append(s)
            for _ in range(20):
                again = post(server, COMPLETIONS, body).events()
                self.assertEqual(text_of(again), text_of(alone))
            self.assertTrue(wait_idle(server, 10))
            with open(f"/proc/{server.process.pid}/status", encoding="ascii") as f:
                rss = next(int(l.split()[1]) for l in f if l.startswith("VmRSS"))
            shadow = 4 if "tsan" in os.environ.get("SLUICE_BIN", "") else 1
            self.assertLess(rss, 600_000 * shadow, "kB")
            for s in hogs:  # closed; or complete, where the server was slower than this test
                s.settimeout(5)
                tail = b""
                try:
                    while b"[DONE]" not in tail and (more := s.recv(65536)):
                        tail = tail[-100:] + more
                except ConnectionResetError:
                    pass
                s.close()

    def test_slow_reader_gets_all(self):
        """A client that reads slowly, but reads, gets the same text in fewer events."""
        with Server(*SIM) as server:
            body = {"model": MODEL, "prompt": "a", "max_tokens": 3000, "seed": 3, "stream": True,
                    "ignore_eos": True}
            fast = post(server, COMPLETIONS, body).events()
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                s.connect(("127.0.0.1", server.port))
                s.sendall(request_bytes(COMPLETIONS, body))
                time.sleep(1)
                s.settimeout(30)
                slow = Answer(s).events()
            self.assertEqual(text_of(fast), text_of(slow))
            self.assertLess(len(slow), len(fast))


class Limits(unittest.TestCase):
    def test_time_for_headers_and_idleness(self):
        with Server(*SIM, "--header-timeout", "1", "--idle-timeout", "2") as server:
            idle, slow = connect(server), connect(server)
            slow.sendall(b"GET /health HT")
            start = time.monotonic()
            self.assertEqual(slow.recv(100), b"")
            self.assertLess(time.monotonic() - start, 4)
            self.assertEqual(idle.recv(100), b"")
            self.assertLess(time.monotonic() - start, 6)
            drip = connect(server)  # a byte now and then does not help
            start = time.monotonic()
            with self.assertRaises(OSError):
                while time.monotonic() - start < 10:
                    drip.sendall(b"G")
                    time.sleep(0.2)
            self.assertLess(time.monotonic() - start, 6)

    def test_connections(self):
        with Server(*SIM, "--max-connections", "20") as server:
            held = [connect(server) for _ in range(20)]
            time.sleep(0.3)
            with connect(server) as s:
                a = Answer(s)
                self.assertEqual(a.status, 503)
            for s in held:
                s.close()
            time.sleep(0.3)
            self.assertEqual(ask(server, "GET", "/health").status, 200)

    def test_bodies_in_flight(self):
        with Server(*SIM, "--max-body-bytes-total", "8m", "--max-body-bytes", "4m") as server:
            part = head("POST", COMPLETIONS, b"a" * 4_000_000) + b"a" * 3_000_000
            socks, refused = [], 0
            for _ in range(6):
                s = connect(server)
                s.settimeout(1)
                socks.append(s)
                try:
                    s.sendall(part)
                    refused += Answer(s).status == 503
                except socket.timeout:
                    pass
                except OSError:
                    refused += 1
            self.assertGreaterEqual(refused, 3)
            small = {"prompt": "a", "max_tokens": 1}
            self.assertEqual(post(server, COMPLETIONS, small).status, 200)
            for s in socks:
                s.close()
            time.sleep(0.2)
            self.assertEqual(post(server, COMPLETIONS, {**small, "x": "y" * 3_900_000}).status, 200)

    def test_full_queue(self):
        with Server(*SLOW, "--max-num-seqs", "1", "--max-num-queued-reqs", "5") as server:
            socks = []
            for _ in range(12):
                s = connect(server)
                s.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": True}))
                socks.append(s)
            end = time.monotonic() + 20
            while metrics(server)["vllm:num_requests_waiting"] < 5 and time.monotonic() < end:
                # the first may have left the queue after the others were refused
                s = connect(server)
                s.sendall(request_bytes(COMPLETIONS, {**LONG, "stream": True}))
                socks.append(s)
                time.sleep(0.2)
            a = post(server, COMPLETIONS, LONG)
            self.assertEqual(a.status, 429)
            self.assertEqual(a.headers["retry-after"], "1")
            self.assertEqual(a.json()["error"]["code"], 429)
            for s in socks:
                s.close()
            self.assertTrue(wait_idle(server))
            self.assertEqual(post(server, COMPLETIONS, {"prompt": "a"}).status, 200)


if __name__ == "__main__":
    main()
