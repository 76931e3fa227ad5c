"""Tool calls and reasoning through the openai package: the bundled model really calls.

SPDX-License-Identifier: Apache-2.0"""

import json
import sys
import tempfile
import unittest

try:
    import openai
except ImportError:
    print("skip: no openai package")
    sys.exit(77)

from wire import MODEL, Server, ask, main

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the current weather in a city.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name of the city"}}}}}
TIMER = {"type": "function", "function": {
    "name": "set_timer", "description": "Start a timer.",
    "parameters": {"type": "object", "required": ["minutes"], "properties": {
        "minutes": {"type": "integer", "description": "Minutes"}}}}}
AUTO = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def gather(stream):
    """A stream's message, as a client puts it together."""
    out = {"content": "", "reasoning": "", "calls": [], "finish": None, "chunks": 0}
    for chunk in stream:
        for choice in chunk.choices:
            out["chunks"] += 1
            out["content"] += choice.delta.content or ""
            out["reasoning"] += (choice.delta.model_extra or {}).get("reasoning") or ""
            for call in choice.delta.tool_calls or []:
                if call.index == len(out["calls"]):
                    assert call.id and call.type == "function" and call.function.name, call
                    out["calls"].append([call.function.name, ""])
                else:
                    assert call.index == len(out["calls"]) - 1, call
                    assert not call.id and not call.function.name, call
                out["calls"][-1][1] += call.function.arguments
            out["finish"] = choice.finish_reason or out["finish"]
    return out


class Base(unittest.TestCase):
    flags = AUTO

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.flags)
        cls.client = openai.OpenAI(base_url=cls.server.base + "/v1", api_key="-", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def chat(self, messages, **more):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.client.chat.completions.create(
            **{"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 120, **more})


class Tools(Base):
    def test_two_steps(self):
        tools = [TIMER, WEATHER]
        messages = [{"role": "user", "content": "What is the weather in Paris?"}]
        a = self.chat(messages, tools=tools)
        choice = a.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertIsNone(choice.message.content)
        (call,) = choice.message.tool_calls
        self.assertEqual(call.function.name, "get_weather")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})
        self.assertTrue(call.id.startswith("chatcmpl-tool-"))
        streamed = gather(self.chat(messages, tools=tools, stream=True))
        self.assertEqual(streamed["calls"], [["get_weather", call.function.arguments]])
        self.assertEqual((streamed["content"], streamed["finish"]), ("", "tool_calls"))
        # The arguments come in pieces; what is made while a reader is late comes in one.
        self.assertTrue(streamed["chunks"] > 4 or any(
            gather(self.chat(messages, tools=tools, stream=True))["chunks"] > 4 for _ in range(9)))

        messages += [choice.message.model_dump(exclude_none=True),
                     {"role": "tool", "tool_call_id": call.id,
                      "content": json.dumps({"temperature": 21, "condition": "sunny"})}]
        a = self.chat(messages, tools=tools)
        self.assertEqual(a.choices[0].finish_reason, "stop")
        self.assertIsNone(a.choices[0].message.tool_calls)
        self.assertEqual(a.choices[0].message.content, "It is 21 degrees and sunny in Paris.")
        streamed = gather(self.chat(messages, tools=tools, stream=True))
        self.assertEqual(streamed["content"], a.choices[0].message.content)
        self.assertEqual((streamed["calls"], streamed["finish"]), ([], "stop"))

    def test_parallel(self):
        both = "What is the weather in Paris and what is the weather in Rome?"
        a = self.chat(both, tools=[WEATHER]).choices[0]
        got = [(c.function.name, json.loads(c.function.arguments)) for c in a.message.tool_calls]
        self.assertEqual(got, [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})])
        self.assertEqual(len({c.id for c in a.message.tool_calls}), 2)
        s = gather(self.chat(both, tools=[WEATHER], stream=True))
        self.assertEqual(s["calls"],
                         [[c.function.name, c.function.arguments] for c in a.message.tool_calls])
        one = self.chat(both, tools=[WEATHER], parallel_tool_calls=False).choices[0]
        self.assertEqual(len(one.message.tool_calls), 1)
        s = gather(self.chat(both, tools=[WEATHER], parallel_tool_calls=False, stream=True))
        self.assertEqual(len(s["calls"]), 1)

    def test_no_call(self):
        for more in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "auto"}):
            a = self.chat("Hello!", **more).choices[0]
            self.assertEqual(a.finish_reason, "stop")
            self.assertTrue(a.message.content)
            self.assertEqual(gather(self.chat("Hello!", stream=True, **more))["content"],
                             a.message.content)
        a = self.chat("What is the weather in Paris?", tools=[WEATHER], tool_choice="none")
        self.assertIn("<tool_call>", a.choices[0].message.content)  # nobody looks for it

    def test_required(self):
        more = dict(tools=[WEATHER, TIMER], tool_choice="required")
        a = self.chat("Hello!", parallel_tool_calls=False, **more).choices[0]
        self.assertEqual(a.finish_reason, "tool_calls")
        self.assertIsNone(a.message.content)
        (call,) = a.message.tool_calls
        self.check_arguments(call.function, [WEATHER, TIMER])
        s = gather(self.chat("Hello!", parallel_tool_calls=False, stream=True, **more))
        self.assertEqual(s["calls"], [[call.function.name, call.function.arguments]])
        self.assertEqual((s["content"], s["finish"]), ("", "tool_calls"))
        # this model, told to call, does not know when to stop: calls until it is cut off
        s = gather(self.chat("Hello!", stream=True, max_tokens=100, **more))
        self.assertGreaterEqual(len(s["calls"]), 1)
        for name, arguments in s["calls"][:-1]:
            self.assertIn(name, ("get_weather", "set_timer"))
            json.loads(arguments)

    def test_named(self):
        name = {"type": "function", "function": {"name": "set_timer"}}
        a = self.chat("Hello!", tools=[WEATHER, TIMER], tool_choice=name).choices[0]
        self.assertEqual(a.finish_reason, "stop")
        (call,) = a.message.tool_calls
        self.assertEqual(call.function.name, "set_timer")
        self.check_arguments(call.function, [TIMER])
        s = gather(self.chat("Hello!", tools=[WEATHER, TIMER], tool_choice=name, stream=True))
        self.assertEqual(s["calls"], [["set_timer", call.function.arguments]])
        self.assertEqual(s["finish"], "stop")

    def test_strict(self):
        """Whatever the model would say, a call that it begins has the schema's arguments."""
        tool = json.loads(json.dumps(WEATHER))
        tool["function"]["strict"] = True
        tool["function"]["parameters"]["properties"]["city"] = {"enum": ["Lima", "Quito"]}
        tool["function"]["parameters"]["additionalProperties"] = False
        for seed in range(4):
            a = self.chat("What is the weather in Paris?", tools=[tool], temperature=1.5, seed=seed,
                          max_tokens=60).choices[0]
            for call in a.message.tool_calls or []:
                if a.finish_reason == "tool_calls":
                    self.assertIn(json.loads(call.function.arguments)["city"], ("Lima", "Quito"))
        a = self.chat("What is the weather in Paris?", tools=[tool]).choices[0]
        self.assertIn(json.loads(a.message.tool_calls[0].function.arguments)["city"],
                      ("Lima", "Quito"))
        a = self.chat("Hello!", tools=[tool]).choices[0]
        self.assertTrue(a.message.content)

    def check_arguments(self, function, tools):
        arguments = json.loads(function.arguments)
        schema = next(t["function"]["parameters"] for t in tools
                      if t["function"]["name"] == function.name)
        for key in schema["required"]:
            kind = schema["properties"][key]["type"]
            self.assertIsInstance(arguments[key], int if kind == "integer" else str)

    def test_cut_off(self):
        for n in range(1, 22):
            a = self.chat("What is the weather in Paris?", tools=[WEATHER], max_tokens=n)
            s = gather(self.chat("What is the weather in Paris?", tools=[WEATHER], max_tokens=n,
                                 stream=True))
            message = a.choices[0].message
            if message.tool_calls:  # only the closing tag is missing
                self.assertEqual(s["calls"], [[c.function.name, c.function.arguments]
                                              for c in message.tool_calls])
            else:
                self.assertEqual(a.choices[0].finish_reason, "length")
                self.assertIn("<tool_call>", message.content)
                if not s["calls"]:
                    self.assertEqual(s["content"], message.content)

    def test_cut_off_where_it_is_forced(self):
        """max_tokens inside a call that had to be made: what there is, and an end of its kind."""
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ("required", named):
            for n in (1, 3, 6, 9):
                more = dict(tools=[WEATHER], tool_choice=choice, max_tokens=n)
                a = self.chat("What is the weather in Paris?", **more).choices[0]
                s = gather(self.chat("What is the weather in Paris?", stream=True, **more))
                self.assertEqual(a.finish_reason, s["finish"])
                for call in a.message.tool_calls or []:
                    self.assertEqual(call.function.name, "get_weather")
                    if a.finish_reason != "length":
                        self.assertIn("city", json.loads(call.function.arguments))

    def test_beams(self):
        more = {"use_beam_search": True}
        a = self.chat("What is the weather in Paris?", tools=[WEATHER], n=2, extra_body=more)
        self.assertEqual(json.loads(a.choices[0].message.tool_calls[0].function.arguments),
                         {"city": "Paris"})
        b = self.chat("Hello!", tools=[WEATHER, TIMER], tool_choice="required", n=2, max_tokens=200,
                      extra_body=more)
        for c in b.choices:
            if c.finish_reason != "length":
                self.assertIn(c.message.tool_calls[0].function.name, ("get_weather", "set_timer"))

    def test_several_choices(self):
        a = self.chat("What is the weather in Paris?", tools=[WEATHER], n=3, temperature=0.1, seed=1)
        self.assertEqual([c.message.tool_calls[0].function.name for c in a.choices],
                         ["get_weather"] * 3)

    def test_logprobs_and_ids_are_all_there(self):
        more = dict(tools=[WEATHER], logprobs=True, extra_body={"return_token_ids": True})
        a = self.chat("What is the weather in Paris?", **more)
        tokens, ids = [], []
        for c in self.chat("What is the weather in Paris?", stream=True, **more):
            tokens += c.choices[0].logprobs.content if c.choices[0].logprobs else []
            ids += (c.choices[0].model_extra or {}).get("token_ids") or []
        self.assertEqual(tokens, a.choices[0].logprobs.content)
        self.assertEqual(ids, a.choices[0].model_extra["token_ids"])
        self.assertEqual(len(ids), a.usage.completion_tokens)

    def test_refused(self):
        name = {"type": "function", "function": {"name": "nobody"}}
        chosen = {"type": "function", "function": {"name": "f"}}
        bad = {"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"type": "strong"}}}}}
        strict = {"type": "function", "function": {**bad["function"], "strict": True}}
        for more, words in (({"tools": [WEATHER], "tool_choice": name}, "does not match any"),
                            ({"tools": []}, "must not be an empty array"),
                            ({"tools": [WEATHER] * 1025}, "tools must be at most 1024"),
                            ({"tool_choice": "auto"}, "`tools` must be set"),
                            ({"tools": [bad], "tool_choice": "required"}, "strong"),
                            ({"tools": [bad], "tool_choice": chosen}, "strong"),
                            ({"tools": [strict]}, "strong"),
                            ({"tools": [{"type": "function", "function": {
                                "name": "f", "parameters": 5}}]}, "parameters"),
                            ({"tools": [{"type": "function", "function": {}}]}, "Field required")):
            with self.assertRaises(openai.BadRequestError) as e:
                self.chat("Hello!", **more)
            self.assertIn(words, e.exception.body["message"], more)

    def test_parser_runs_are_counted(self):
        def counts():
            page = ask(self.server, "GET", "/metrics").body.decode()
            rows = [l for l in page.splitlines()
                    if l.startswith("vllm:tool_call_parser_invocations_total{")]
            self.assertEqual(len(rows), 4)
            return {(mode, found): next(float(l.split()[-1]) for l in rows if f'mode="{mode}"' in l
                                        and f'outcome="{found}"' in l)
                    for mode in ("streaming", "non_streaming")
                    for found in ("tool_call", "no_tool_call")}

        before = counts()
        self.chat("What is the weather in Paris?", tools=[WEATHER])
        self.chat("Hello!", tools=[WEATHER], tool_choice="none")
        gather(self.chat("What is the weather in Paris?", tools=[WEATHER], stream=True))
        now = counts()
        grown = {k: now[k] - before[k] for k in now}
        self.assertEqual(grown["non_streaming", "tool_call"], 1)
        self.assertEqual(grown["non_streaming", "no_tool_call"], 0)
        self.assertGreater(grown["streaming", "tool_call"], 0)
        self.assertGreater(grown["streaming", "no_tool_call"], 0)

    def test_usage_says_nothing_of_reasoning(self):
        self.assertIsNone(self.chat("Hello!").usage.completion_tokens_details)


class NoParser(unittest.TestCase):
    def test_errors(self):
        with Server() as s:
            body = {"messages": [{"role": "user", "content": "x"}], "tools": [WEATHER]}
            for choice, words in ((None, '"auto" tool choice requires'),
                                  ("required", 'tool_choice="required" requires --tool-call-parser'),
                                  ({"type": "function", "function": {"name": "get_weather"}},
                                   'requires --tool-call-parser to be set')):
                a = ask(s, "POST", "/v1/chat/completions", {**body, "tool_choice": choice})
                self.assertEqual(a.status, 400)
                self.assertIn(words, a.json()["error"]["message"])


# A template that puts the words of a thinking model into pebble's mouth: the answer continues it.
TEMPLATE = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""


class Reasoning(Base):
    """pebble does not think, so its whole answer is what a thinking model would have been cut off
    in; what is looked at here is who gets which text."""

    @classmethod
    def setUpClass(cls):
        cls.file = tempfile.NamedTemporaryFile("w", suffix=".jinja")
        cls.file.write(TEMPLATE)
        cls.file.flush()
        cls.flags = (*AUTO, "--reasoning-parser", "qwen3", "--chat-template", cls.file.name)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.file.close()

    def test_all_is_reasoning(self):
        a = self.chat("Hello!")
        message = a.choices[0].message
        self.assertIsNone(message.content)
        self.assertTrue(message.model_extra["reasoning"])
        details = a.usage.completion_tokens_details.reasoning_tokens
        # the token that ended it is no thought
        self.assertEqual(details, a.usage.completion_tokens - 1)
        s = gather(self.chat("Hello!", stream=True))
        self.assertEqual((s["reasoning"], s["content"]), (message.model_extra["reasoning"], ""))
        chunks = list(self.chat("Hello!", stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[-1].usage, a.usage)

    def test_hidden(self):
        a = self.chat("Hello!", logprobs=True, extra_body={"include_reasoning": False})
        self.assertIsNone(a.choices[0].message.model_extra["reasoning"])
        self.assertIsNone(a.choices[0].logprobs)
        s = gather(self.chat("Hello!", stream=True, extra_body={"include_reasoning": False}))
        self.assertEqual((s["reasoning"], s["content"], s["finish"]), ("", "", "stop"))

    def test_no_thinking(self):
        for more in ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
                     {"reasoning_effort": "none"}):
            message = self.chat("Hello!", **more).choices[0].message
            self.assertTrue(message.content)
            self.assertIsNone(message.model_extra["reasoning"])


if __name__ == "__main__":
    main()
