"""The openai package as a client: what applications do, against the real model on the CPU.

SPDX-License-Identifier: Apache-2.0"""

import json
import math
import sys
import unittest

try:
    import openai
except ImportError:
    print("skip: no openai package")
    sys.exit(77)

from wire import MODEL, Server, main, wait_idle

ASK = [{"role": "user", "content": "How do I list the contents of a tar archive?"}]


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "key")
        cls.client = openai.OpenAI(base_url=cls.server.base + "/v1", api_key="key", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def chat(self, **more):
        return self.client.chat.completions.create(
            **{"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 40, **more})

    def complete(self, prompt="The tar command", **more):
        return self.client.completions.create(
            **{"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12, **more})

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], [MODEL])
        self.assertEqual(self.client.models.retrieve(MODEL).id, MODEL)

    def test_chat(self):
        a = self.chat()
        self.assertEqual(a.object, "chat.completion")
        self.assertTrue(a.id.startswith("chatcmpl-"))
        message = a.choices[0].message
        self.assertEqual(message.role, "assistant")
        self.assertIn("tar", message.content)
        self.assertIn(a.choices[0].finish_reason, ("stop", "length"))
        self.assertIsNone(message.tool_calls)
        self.assertEqual(a.usage.total_tokens, a.usage.prompt_tokens + a.usage.completion_tokens)

    def test_every_key_is_there(self):
        raw = json.loads(self.chat().model_dump_json())
        self.assertLessEqual({"service_tier", "system_fingerprint", "prompt_logprobs",
                              "prompt_token_ids", "kv_transfer_params"}, raw.keys())
        self.assertLessEqual({"refusal", "annotations", "audio", "function_call", "reasoning"},
                             raw["choices"][0]["message"].keys())
        self.assertLessEqual({"logprobs", "stop_reason", "token_ids"}, raw["choices"][0].keys())

    def test_chat_stream_equals_chat(self):
        whole = self.chat(logprobs=True, top_logprobs=3)
        chunks = list(self.chat(stream=True, logprobs=True, top_logprobs=3,
                                stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual(chunks[0].choices[0].delta.content, "")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, whole.usage)
        body = [c for c in chunks if c.choices]
        self.assertEqual("".join(c.choices[0].delta.content for c in body),
                         whole.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in body][-1],
                         whole.choices[0].finish_reason)
        self.assertTrue(all(c.choices[0].finish_reason is None for c in body[:-1]))
        logprobs = [t for c in body if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
        self.assertEqual(logprobs, whole.choices[0].logprobs.content)
        self.assertEqual(len(logprobs), whole.usage.completion_tokens)

    def test_chat_logprobs(self):
        a = self.chat(logprobs=True, top_logprobs=5)
        for t in a.choices[0].logprobs.content:
            self.assertEqual(bytes(t.bytes).decode("utf-8", "replace"), t.token)
            self.assertEqual(len(t.top_logprobs), 5)
            self.assertLessEqual(t.logprob, 0)
            values = [x.logprob for x in t.top_logprobs]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertEqual(t.top_logprobs[0].token, t.token)  # greedy
            self.assertLessEqual(sum(math.exp(v) for v in values), 1.001)

    def test_chat_logprobs_of_parts_of_characters(self):
        ids = self.complete(prompt="\U0001f642", max_tokens=1, logprobs=1,
                            extra_body={"return_token_ids": True}).choices[0]
        ids = ids.model_extra["prompt_token_ids"][1:]
        self.assertGreater(len(ids), 1)
        for t in self.chat(max_tokens=3, logprobs=True, extra_body={
                "allowed_token_ids": ids[:1], "ignore_eos": True}).choices[0].logprobs.content:
            self.assertIn("\ufffd", t.token)
            self.assertTrue("\U0001f642".encode().startswith(bytes(t.bytes)), t.bytes)

    def test_chat_content_parts_and_history(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
        self.assertEqual(self.chat(messages=parts).choices[0].message.content,
                         self.chat().choices[0].message.content)
        history = [*ASK, {"role": "assistant", "content": "Use `tar tf`."},
                   {"role": "user", "content": "And how do I extract it?"}]
        a = self.chat(messages=history)
        self.assertTrue(a.choices[0].message.content)

    def test_continue_final_message(self):
        start = "Use `tar"
        a = self.chat(messages=[*ASK, {"role": "assistant", "content": start}], extra_body={
            "continue_final_message": True, "add_generation_prompt": False, "echo": True})
        self.assertTrue(a.choices[0].message.content.startswith(start))
        self.assertGreater(len(a.choices[0].message.content), len(start))

    def test_completion(self):
        a = self.complete()
        self.assertEqual(a.object, "text_completion")
        self.assertEqual(a.usage.completion_tokens, 12)
        self.assertEqual(a.choices[0].finish_reason, "length")
        text = "".join(c.choices[0].text for c in self.complete(stream=True))
        self.assertEqual(text, a.choices[0].text)

    def test_prompts_of_all_kinds(self):
        ids = self.complete(max_tokens=1, extra_body={"return_token_ids": True}).choices[0]
        ids = ids.model_extra["prompt_token_ids"]
        one = self.complete().choices[0].text
        self.assertEqual(self.complete(prompt=["The tar command"] * 2).choices[1].text, one)
        self.assertEqual(self.complete(prompt=ids).choices[0].text, one)
        both = self.complete(prompt=[ids, ids])
        self.assertEqual([c.text for c in both.choices], [one, one])
        self.assertEqual([c.index for c in both.choices], [0, 1])
        self.assertEqual(both.usage.prompt_tokens, 2 * len(ids))

    def test_n(self):
        a = self.chat(n=3, temperature=1, seed=5)
        self.assertEqual([c.index for c in a.choices], [0, 1, 2])
        self.assertEqual(a.usage.completion_tokens > 3, True)
        texts = {0: "", 1: "", 2: ""}
        ends = []
        for chunk in self.chat(n=3, temperature=1, seed=5, stream=True):
            c = chunk.choices[0]
            texts[c.index] += c.delta.content or ""
            if c.finish_reason:
                ends.append(c.index)
        self.assertEqual([c.message.content for c in a.choices], list(texts.values()))
        self.assertEqual(sorted(ends), [0, 1, 2])
        two = self.complete(prompt=["one", "two"], n=2, temperature=1, seed=1)
        self.assertEqual([c.index for c in two.choices], [0, 1, 2, 3])

    def test_best_of(self):
        more = {"temperature": 1, "seed": 5, "logprobs": 0}
        all_six = self.complete(n=6, **more).choices
        best = self.complete(n=2, best_of=6, **more)
        order = sorted(all_six, key=lambda c: -sum(c.logprobs.token_logprobs))
        self.assertEqual([c.index for c in best.choices], [0, 1])
        self.assertEqual([c.text for c in best.choices], [c.text for c in order[:2]])
        self.assertEqual(best.usage.completion_tokens,
                         sum(len(c.logprobs.tokens) for c in best.choices))
        plain = self.complete(n=2, best_of=6, temperature=1, seed=5).choices
        self.assertEqual([c.text for c in plain], [c.text for c in best.choices])
        self.assertIsNone(plain[0].logprobs)
        chat = self.chat(temperature=1, extra_body={"best_of": 3})
        self.assertEqual(len(chat.choices), 1)
        with self.assertRaises(openai.BadRequestError) as e:
            self.complete(n=1, best_of=2, temperature=1, stream=True)
        self.assertEqual(e.exception.body["param"], "best_of")

    def test_beam_search(self):
        def beams(n=4, **more):
            return self.complete(n=n, logprobs=0, extra_body={"use_beam_search": True, **more})

        a = beams()
        self.assertEqual([c.index for c in a.choices], [0, 1, 2, 3])
        self.assertEqual(len({c.text for c in a.choices}), 4)
        sums = [sum(c.logprobs.token_logprobs) for c in a.choices]
        self.assertEqual(sums, sorted(sums, reverse=True))  # all have 12 tokens
        greedy = self.complete(logprobs=0).choices[0]
        self.assertGreaterEqual(sums[0] + 1e-4, sum(greedy.logprobs.token_logprobs))
        self.assertEqual(beams(n=1).choices[0].text, greedy.text)
        two = beams(n=2, best_of=4)
        self.assertEqual([c.text for c in two.choices], [c.text for c in a.choices[:2]])
        self.assertEqual(two.usage.completion_tokens, 24)
        for early in (True, False, "never", None):
            c = self.chat(n=2, extra_body={"use_beam_search": True, "early_stopping": early,
                                           "length_penalty": 0, "include_stop_str_in_output": True,
                                           "skip_special_tokens": False}).choices[0]
            self.assertTrue(c.finish_reason == "length" or c.message.content.endswith("<|im_end|>"))
        stop = a.choices[0].logprobs.tokens[0]
        ids = beams(return_token_ids=True).choices[0].model_extra["token_ids"]
        c = beams(stop_token_ids=[ids[0]], early_stopping=True)
        self.assertIn(stop, [x.logprobs.tokens[-1] for x in c.choices])
        self.assertIn(ids[0], [x.model_extra["stop_reason"] for x in c.choices])
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat(n=2, stream=True, extra_body={"use_beam_search": True})
        self.assertEqual(e.exception.body["message"],
                         "Streaming is not currently supported with beam search")
        only = self.complete(echo=True, max_tokens=0, n=2, extra_body={"use_beam_search": True})
        self.assertEqual([c.text for c in only.choices], ["The tar command"] * 2)
        wait_idle(self.server)

    def test_completion_logprobs_and_echo(self):
        a = self.complete(logprobs=2, echo=True, max_tokens=4)
        lp = a.choices[0].logprobs
        self.assertTrue(a.choices[0].text.startswith("<|bos|>") or
                        a.choices[0].text.startswith("The tar command"))
        self.assertIsNone(lp.token_logprobs[0])
        self.assertIsNone(lp.top_logprobs[0])
        n = a.usage.prompt_tokens + a.usage.completion_tokens
        self.assertEqual([len(x) for x in (lp.tokens, lp.token_logprobs, lp.top_logprobs,
                                           lp.text_offset)], [n] * 4)
        for i in range(1, n):
            self.assertEqual(lp.text_offset[i], lp.text_offset[i - 1] + len(lp.tokens[i - 1]))
            self.assertIn(lp.tokens[i], lp.top_logprobs[i])
            self.assertIn(len(lp.top_logprobs[i]), (2, 3))
        only = self.complete(logprobs=2, echo=True, max_tokens=0).choices[0]
        self.assertEqual(only.text, "The tar command")
        self.assertEqual(only.logprobs.token_logprobs,
                         lp.token_logprobs[:a.usage.prompt_tokens])

    def test_echo_stream(self):
        whole = self.complete(logprobs=1, echo=True, max_tokens=4)
        chunks = list(self.complete(logprobs=1, echo=True, max_tokens=4, stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), whole.choices[0].text)
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            joined = sum((getattr(c.choices[0].logprobs, name) for c in chunks), [])
            self.assertEqual(joined, getattr(whole.choices[0].logprobs, name))

    def test_prompt_logprobs(self):
        a = self.complete(extra_body={"prompt_logprobs": 1}, max_tokens=1)
        lps = a.choices[0].model_extra["prompt_logprobs"]
        self.assertEqual(len(lps), a.usage.prompt_tokens)
        self.assertIsNone(lps[0])
        for entry in lps[1:]:
            self.assertIn(len(entry), (1, 2))
            self.assertEqual({"logprob", "rank", "decoded_token"}, next(iter(entry.values())).keys())

    def test_stop(self):
        text = self.complete(max_tokens=30).choices[0].text
        word = text.split()[3]
        a = self.complete(max_tokens=30, stop=[word]).choices[0]
        self.assertEqual(a.text, text[:text.index(word)])
        self.assertEqual((a.finish_reason, a.model_extra["stop_reason"]), ("stop", word))
        a = self.complete(max_tokens=30, stop=word, extra_body={"include_stop_str_in_output": True})
        self.assertEqual(a.choices[0].text, text[:text.index(word) + len(word)])
        ids = self.complete(extra_body={"return_token_ids": True}).choices[0].model_extra["token_ids"]
        a = self.complete(extra_body={"stop_token_ids": [ids[4]], "return_token_ids": True}).choices[0]
        self.assertEqual(a.model_extra["stop_reason"], ids[4])
        self.assertEqual(a.model_extra["token_ids"], ids[:ids.index(ids[4]) + 1])

    def test_seed(self):
        texts = {self.complete(temperature=1, seed=11).choices[0].text for _ in range(3)}
        self.assertEqual(len(texts), 1)
        others = {self.complete(temperature=1, seed=i).choices[0].text for i in range(6)}
        self.assertGreater(len(others), 2)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as e:
            self.chat(model="gpt-9")
        self.assertEqual(e.exception.body["message"], "The model `gpt-9` does not exist.")
        self.assertEqual(e.exception.body["code"], 404)
        for more, words in ((dict(temperature=3), "temperature must be in [0, 2], got 3.0."),
                            (dict(top_p=0), "top_p must be in (0, 1], got 0.0."),
                            (dict(n=0), "n must be at least 1, got 0."),
                            (dict(n=2), "n must be 1 when using greedy sampling, got 2."),
                            (dict(max_tokens=5000), "maximum context length is 4096 tokens"),
                            (dict(top_logprobs=2), "`logprobs` must be set to true"),
                            (dict(logprobs=True, top_logprobs=21),
                             "Requested sample logprobs of 21, which is greater than max allowed: 20"),
                            (dict(presence_penalty=3), "presence_penalty must be in [-2, 2]"),
                            (dict(stop=[""]), "stop cannot contain an empty string."),
                            (dict(tools=[{"type": "function", "function": {"name": "f"}}]),
                             '"auto" tool choice requires --enable-auto-tool-choice')):
            with self.assertRaises(openai.BadRequestError) as e:
                self.chat(**more)
            self.assertIn(words, e.exception.body["message"], more)
            self.assertEqual(e.exception.body["type"], "BadRequestError")
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.server.base + "/v1", api_key="no",
                          max_retries=0).models.list()
        with self.assertRaises(openai.InternalServerError) as e:  # 501: known, not there yet
            self.chat(extra_body={"kv_transfer_params": {"a": 1}})
        self.assertEqual(e.exception.status_code, 501)

    def test_structured_output(self):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                  "additionalProperties": False}
        a = self.chat(response_format={"type": "json_schema", "json_schema": {
            "name": "answer", "schema": schema, "strict": True}})
        self.assertIn("ok", json.loads(a.choices[0].message.content))
        b = self.complete(extra_body={"structured_outputs": {"choice": ["left", "right"]}})
        self.assertIn(b.choices[0].text, ("left", "right"))

    def test_tools_in_the_prompt(self):
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}}}]
        a = self.chat(messages=[{"role": "user", "content": "What is the weather in Paris?"}],
                      tools=tools, tool_choice="none", max_tokens=60)
        b = self.chat(messages=[{"role": "user", "content": "What is the weather in Paris?"}])
        self.assertGreater(a.usage.prompt_tokens, b.usage.prompt_tokens + 20)
        self.assertIn("get_weather", a.choices[0].message.content)

    def test_early_close(self):
        for _ in range(5):
            stream = self.chat(stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
            next(iter(stream))
            stream.close()
        self.assertTrue(wait_idle(self.server))


if __name__ == "__main__":
    main()
