"""The server around the API: routes, keys, origins, TLS, ids, logs, metrics, drain.

SPDX-License-Identifier: Apache-2.0"""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

from wire import MODEL, SIM, SLOW, Answer, Server, ask, connect, head, main, metrics, post
from wire import request_bytes, wait_idle

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SMALL = {"prompt": "a", "max_tokens": 2}


class Routes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(*SIM)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def get(self, path, method="GET", headers=()):
        return ask(self.server, method, path, headers=headers)

    def test_small_ones(self):
        for path, method in (("/health", "GET"), ("/ping", "GET"), ("/ping", "POST")):
            a = self.get(path, method)
            self.assertEqual((a.status, a.body), (200, b""))
        self.assertEqual(self.get("/version").json(), {"version": "0.1.0"})
        self.assertEqual(self.get("/load").json(), {"server_load": 0})
        self.assertIn("<title>Sluice</title>", self.get("/").body.decode())

    def test_openapi_names_what_is_there(self):
        doc = self.get("/openapi.json").json()
        self.assertEqual(doc["openapi"], "3.1.0")
        self.assertEqual(doc["info"]["version"], self.get("/version").json()["version"])
        for path, item in doc["paths"].items():
            for method in item.keys() - {"parameters"}:
                a = self.get(path.replace("{model_id}", MODEL), method.upper())
                self.assertNotEqual(a.status, 405, (path, method))
                if a.status == 404 and path != "/tokenizer_info": # a model that generates
                    self.assertIn("The model does not support", a.body.decode())
        have = {}
        for path in doc["paths"]:
            a = self.get(path.replace("{model_id}", MODEL), "DELETE")
            self.assertEqual(a.status, 405, path)
            have[path] = set(a.headers["allow"].split(", ")) - {"HEAD"}
        for path, methods in have.items():
            self.assertEqual({m.upper() for m in doc["paths"][path].keys() - {"parameters"}},
                             methods, path)

    def test_models(self):
        cards = self.get("/v1/models").json()
        self.assertEqual(cards["object"], "list")
        card = cards["data"][0]
        self.assertEqual(card["id"], MODEL)
        self.assertEqual(card["max_model_len"], 4096)
        self.assertEqual(card["permission"][0]["object"], "model_permission")
        self.assertEqual(self.get("/v1/models/" + MODEL).json(), card)
        self.assertEqual(self.get("/v1/models/" + MODEL.replace("/", "%2F")).json(), card)
        missing = self.get("/v1/models/other")
        self.assertEqual(missing.status, 404)
        self.assertEqual(missing.json()["error"]["message"], "The model `other` does not exist.")

    def test_errors_in_openai_shape(self):
        a = self.get("/nowhere")
        self.assertEqual(a.status, 404)
        self.assertEqual(a.json(), {"error": {"message": "Not Found", "type": "Not Found",
                                              "param": None, "code": 404}})
        a = self.get(CHAT)
        self.assertEqual(a.status, 405)
        self.assertEqual(a.json()["error"]["type"], "Method Not Allowed")
        self.assertEqual(a.headers["allow"], "POST")

    def test_head(self):
        with connect(self.server) as s:
            s.sendall(head("HEAD", "/version") + head("GET", "/version"))
            data = b""
            while b'{"version"' not in data:
                data += s.recv(4096)
            self.assertEqual(data.count(b"200 OK"), 2)
            self.assertEqual(data.count(b'{"version"'), 1)

    def test_tokenize(self):
        a = post(self.server, "/tokenize", {"prompt": "Hello world", "return_token_strs": True}).json()
        self.assertEqual(a["count"], len(a["tokens"]))
        self.assertEqual(a["count"], len(a["token_strs"]))
        self.assertEqual(a["max_model_len"], 4096)
        self.assertEqual(a["token_strs"][0], "<|bos|>")
        bare = post(self.server, "/tokenize", {"prompt": "Hello world",
                                               "add_special_tokens": False}).json()
        self.assertEqual(bare["tokens"], a["tokens"][1:])
        self.assertIsNone(bare["token_strs"])
        text = post(self.server, "/detokenize", {"tokens": bare["tokens"]}).json()
        self.assertEqual(text, {"prompt": "Hello world"})
        chat = post(self.server, "/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
        text = post(self.server, "/detokenize", {"tokens": chat["tokens"]}).json()["prompt"]
        self.assertEqual(text, "<|bos|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")

    def test_invocations(self):
        self.assertEqual(post(self.server, "/invocations", SMALL).json()["object"],
                         "text_completion")
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        self.assertEqual(post(self.server, "/invocations", body).json()["object"],
                         "chat.completion")

    def test_origins(self):
        origin = "Origin: http://page.example"
        a = ask(self.server, "GET", "/version", headers=[origin])
        self.assertEqual(a.headers["access-control-allow-origin"], "*")
        a = ask(self.server, "OPTIONS", CHAT, headers=[
            origin, "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization,content-type"])
        self.assertEqual(a.status, 200)
        self.assertIn("POST", a.headers["access-control-allow-methods"])
        self.assertEqual(a.headers["access-control-allow-headers"], "authorization,content-type")
        self.assertNotIn("access-control-allow-origin", self.get("/version").headers)

    def test_metrics(self):
        before = metrics(self.server)
        post(self.server, COMPLETIONS, {**SMALL, "ignore_eos": True})
        after = metrics(self.server)
        for name, more in (("vllm:generation_tokens_total", 2), ("vllm:prompt_tokens_total", 2),
                           ("vllm:request_success_total", 1), ("http_requests_total", 1),
                           ("http_request_size_bytes_count", 1)):
            self.assertEqual(after[name] - before.get(name, 0), more, name)
        text = ask(self.server, "GET", "/metrics").body.decode()
        self.assertIn('http_requests_total{handler="/v1/completions",method="POST",status="2xx"}',
                      text)

    def test_http_1_0(self):
        raw = json.dumps({**SMALL, "stream": True}).encode()
        with connect(self.server) as s:
            s.sendall(b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                      b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
            data = b""
            while more := s.recv(65536):
                data += more
        self.assertNotIn(b"chunked", data.lower())
        self.assertTrue(data.endswith(b"data: [DONE]\n\n"), data[-80:])


class Options(unittest.TestCase):
    """What flags change."""

    def test_api_key(self):
        with Server(*SIM, "--api-key", "secret", "--api-key", "other") as server:
            for path in ("/health", "/ping", "/version", "/metrics", "/"):
                self.assertEqual(ask(server, "GET", path).status, 200, path)
            for path in ("/v1/models", "/load", "/openapi.json", "/nowhere", "/v1/models/x"):
                a = ask(server, "GET", path)
                self.assertEqual((a.status, a.json()), (401, {"error": "Unauthorized"}), path)
            for header in ("Authorization: Bearer wrong", "Authorization: secret",
                           "Authorization: Basic secret", "Authorization: Bearer",
                           "Authorization: Bearer secret2", "Authorization: Bearer secre"):
                self.assertEqual(post(server, COMPLETIONS, SMALL, [header]).status, 401, header)
            for key in ("secret", "other"):
                header = f"Authorization: Bearer {key}"
                self.assertEqual(post(server, COMPLETIONS, SMALL, [header]).status, 200)
            a = ask(server, "OPTIONS", CHAT, headers=["Origin: http://a", "Access-Control-Request-Method: POST"])
            self.assertEqual(a.status, 200)

    def test_allowed_origins(self):
        with Server(*SIM, "--allowed-origins", '["http://a.example"]') as server:
            a = ask(server, "GET", "/version", headers=["Origin: http://a.example"])
            self.assertEqual(a.headers["access-control-allow-origin"], "http://a.example")
            self.assertEqual(a.headers["vary"], "Origin")
            a = ask(server, "GET", "/version", headers=["Origin: http://b.example"])
            self.assertNotIn("access-control-allow-origin", a.headers)
            a = ask(server, "OPTIONS", CHAT, headers=["Origin: http://b.example",
                                                      "Access-Control-Request-Method: POST"])
            self.assertEqual(a.status, 400)

    def test_request_ids(self):
        with Server(*SIM, "--enable-request-id-headers") as server:
            a = post(server, COMPLETIONS, SMALL, ["X-Request-Id: mine-7"])
            self.assertEqual(a.headers["x-request-id"], "mine-7")
            self.assertEqual(a.json()["id"], "cmpl-mine-7")
            a = post(server, COMPLETIONS, {**SMALL, "request_id": "from-body"})
            self.assertEqual(a.json()["id"], "cmpl-from-body")
            a = post(server, COMPLETIONS, SMALL)
            self.assertRegex(a.headers["x-request-id"], "^[0-9a-f]{32}$")
            self.assertRegex(a.json()["id"], "^cmpl-[0-9a-f]{32}$")

    def test_small_flags(self):
        with Server(*SLOW, "--enable-server-load-tracking", "--enable-tokenizer-info-endpoint",
                    "--enable-prompt-tokens-details", "--enable-force-include-usage",
                    "--fingerprint-mode", "custom-text", "--return-tokens-as-token-ids",
                    "--root-path", "/api", "--served-model-name", "one", "two") as server:
            info = ask(server, "GET", "/tokenizer_info").json()
            self.assertIn("chat_template", info)
            self.assertEqual(ask(server, "GET", "/api/version").status, 200)
            self.assertEqual([c["id"] for c in ask(server, "GET", "/v1/models").json()["data"]],
                             ["one", "two"])
            a = post(server, COMPLETIONS, {**SMALL, "model": "two", "logprobs": 1}).json()
            self.assertEqual(a["model"], "two")
            self.assertEqual(a["system_fingerprint"], "custom-text")
            self.assertEqual(a["usage"]["prompt_tokens_details"], {"cached_tokens": 0})
            self.assertTrue(a["choices"][0]["logprobs"]["tokens"][0].startswith("token_id:"))
            events = post(server, COMPLETIONS, {**SMALL, "stream": True}).events()
            self.assertTrue(all("usage" in e for e in events if e))
            self.assertEqual(events[-2]["choices"], [])
            with connect(server) as s:
                s.sendall(request_bytes(COMPLETIONS, {**SMALL, "max_tokens": 4000, "ignore_eos": True,
                                                      "logprobs": 20, "stream": True}))
                s.recv(100)
                self.assertEqual(ask(server, "GET", "/load").json(), {"server_load": 1})

    def test_template_of_the_request(self):
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
                "chat_template": "{{ bos_token }}[{{ messages[0].content }}]",
                "return_prompt_text": True}
        with Server(*SIM, "--trust-request-chat-template") as server:
            self.assertEqual(post(server, CHAT, body).json()["prompt_text"], "<|bos|>[a]")
            for broken in ("{% if %}", "{{ raise_exception('no way') }}", "{{ x.y.z }}"):
                a = post(server, CHAT, {**body, "chat_template": broken})
                self.assertEqual(a.status, 400, broken)
            self.assertIn("no way", post(server, CHAT, {**body, "chat_template":
                          "{{ raise_exception('no way') }}"}).json()["error"]["message"])
        with Server(*SIM) as server:
            self.assertEqual(post(server, CHAT, body).status, 400)

    def test_access_log(self):
        with Server(*SIM, "--disable-access-log-for-endpoints", "/health,/metrics") as server:
            ask(server, "GET", "/version?x=1")
            post(server, COMPLETIONS, SMALL)
            ask(server, "GET", "/nowhere\x1b[31m".replace("\x1b", "%1b"))
            ask(server, "GET", "/metrics")
            out = server.output()
            self.assertRegex(out, r'127\.0\.0\.1:\d+ - "GET /version\?x=1 HTTP/1\.1" 200 OK')
            self.assertRegex(out, r'"POST /v1/completions HTTP/1\.1" 200 OK')
            self.assertRegex(out, r'"GET /nowhere.* HTTP/1\.1" 404 Not Found')
            self.assertNotIn('"GET /metrics', out)
            self.assertNotIn('"GET /health', out)
        with Server(*SIM, "--disable-uvicorn-access-log") as server:
            ask(server, "GET", "/version")
            self.assertNotIn('"GET /version', server.output())

    def test_prompts_are_logged_only_when_asked(self):
        with Server(*SIM) as server:
            post(server, COMPLETIONS, {**SMALL, "prompt": "very secret words"})
            self.assertNotIn("secret words", server.output())

    def test_tls(self):
        with tempfile.TemporaryDirectory() as d:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout",
                            d + "/key.pem", "-out", d + "/cert.pem", "-days", "2", "-subj",
                            "/CN=localhost"], check=True, capture_output=True)
            with TlsServer(*SLOW, "--ssl-certfile", d + "/cert.pem", "--ssl-keyfile",
                           d + "/key.pem") as server:
                context = ssl.create_default_context(cafile=d + "/cert.pem")
                with context.wrap_socket(connect(server), server_hostname="localhost") as s:
                    for stream in (False, True):
                        s.sendall(request_bytes(COMPLETIONS, {**SMALL, "stream": stream}))
                        self.assertEqual(Answer(s).status, 200)
                    s.sendall(head("GET", "/metrics"))
                    self.assertEqual(Answer(s).status, 200)
                for stream in (False, True):  # clients leave here too
                    s = context.wrap_socket(connect(server), server_hostname="localhost")
                    s.sendall(request_bytes(COMPLETIONS, {**SMALL, "max_tokens": 3000,
                                                          "ignore_eos": True, "stream": stream}))
                    time.sleep(0.3)
                    s.close()
                time.sleep(0.5)
                with context.wrap_socket(connect(server), server_hostname="localhost") as s:
                    s.sendall(head("GET", "/metrics"))
                    text = Answer(s).body.decode()
                    self.assertRegex(text, r"vllm:num_requests_running\{[^}]*\} 0\.0")
                with connect(server) as s:  # no TLS at all
                    s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    self.assertNotIn(b"200", s.recv(100))


class TlsServer(Server):
    def wait_ready(self):
        for _ in range(200):
            if self.process.poll() is not None:
                raise RuntimeError(self.output())
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)


class Drain(unittest.TestCase):
    def test_what_runs_finishes(self):
        with Server(*SLOW) as server:
            s = connect(server)
            s.sendall(request_bytes(COMPLETIONS, {**SMALL, "max_tokens": 800, "ignore_eos": True}))
            kept = connect(server)
            kept.sendall(head("GET", "/health"))
            self.assertEqual(Answer(kept).status, 200)
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            kept.sendall(head("GET", "/health"))
            a = Answer(kept)
            self.assertEqual(a.status, 503)
            self.assertEqual(a.headers["connection"], "close")
            a = post(server, COMPLETIONS, SMALL)
            self.assertEqual(a.status, 503)
            self.assertEqual(a.json()["error"]["code"], 503)
            a = Answer(s)
            self.assertEqual(a.status, 200)
            self.assertEqual(a.json()["usage"]["completion_tokens"], 800)
            self.assertEqual(a.json()["choices"][0]["finish_reason"], "length")
            self.assertEqual(server.process.wait(10), 0)

    def test_what_runs_too_long_is_aborted(self):
        for second in (False, True):
            flags = [] if second else ["--shutdown-timeout", "1"]
            with Server(*SLOW, *flags) as server:
                s = connect(server)
                s.sendall(request_bytes(COMPLETIONS, {**SMALL, "max_tokens": 4000, "stream": True,
                                                      "ignore_eos": True}))
                time.sleep(0.3)
                start = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                if second:
                    time.sleep(0.1)
                    server.process.send_signal(signal.SIGTERM)
                events = Answer(s).events()
                self.assertIsNone(events[-1])  # [DONE]
                self.assertEqual(events[-2]["choices"][0]["finish_reason"], "abort")
                self.assertEqual(server.process.wait(10), 0)
                self.assertLess(time.monotonic() - start, 3)


if __name__ == "__main__":
    main()
