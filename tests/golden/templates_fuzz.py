#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Real chat templates over random conversations, by Python's Jinja2 and by ours.

    python3 tests/golden/templates_fuzz.py [--binary build/golden_templates] [--shared ../shared]
        [--seed N] [--count N] [--mutate]

--mutate also damages the templates' text at random, so that the lexer, the parser and their errors
are compared too. Both must give the same text, or both must fail."""
import argparse
import glob
import os
import random
import resource
import sys

from jinja_fuzz import Ours, differs, environment


class Conversation:
    """Random variables of the shape that servers pass to chat templates."""

    def __init__(self, rng):
        self.r = rng
        self.plain = rng.random() < 0.7  # contents are text and arguments objects

    def text(self):
        r = self.r
        return r.choice([
            "", "Hi", " spaced \n", "<think>\nhm\n</think>\n\nDone", "a</think>b", "<think>open",
            "line one\nline two", "日本語テキスト 🤗", "{\"k\": 1}", "it's \"quoted\" & <b>", "\t",
            "You are helpful.", "/no_think go", "x" * r.randrange(40), "[THINK]t[/THINK]r",
            "<|im_end|>", "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "café", "\\n", "%s {} {{ x }}",
            "<tool_response>r</tool_response>", "Detailed thinking off", "I’ll go…"])

    def value(self, depth=0):
        r = self.r
        x = r.random()
        if x < 0.35 or depth > 2:
            return r.choice([self.text(), 1, 0, -7, 2.5, 1e-7, 1e20, True, False, None, "s"])
        if x < 0.6:
            return [self.value(depth + 1) for _ in range(r.randrange(3))]
        return {r.choice(["a", "b", "city", "items", "é"]): self.value(depth + 1)
                for _ in range(r.randrange(3))}

    def schema(self, depth=0):
        r = self.r
        kind = r.choice(["string", "number", "integer", "boolean", "array", "object", "null",
                         ["string", "null"], None])
        s = {}
        if kind is not None:
            s["type"] = kind
        if r.random() < 0.7:
            s["description"] = self.text()
        if r.random() < 0.2:
            s["enum"] = r.choice([["a", "b"], [1, 2], [], [None, "x"]])
        if r.random() < 0.1:
            s["default"] = self.value(2)
        if r.random() < 0.1:
            s["nullable"] = True
        if depth < 3 and kind == "array":
            s["items"] = self.schema(depth + 1) if r.random() < 0.8 else {}
        if depth < 3 and (kind == "object" or depth == 0):
            s["type"] = "object"
            s["properties"] = {r.choice(["city", "unit", "n", "items", "keys"]): self.schema(depth + 1)
                               for _ in range(r.randrange(4))}
            if r.random() < 0.6:
                s["required"] = list(s["properties"])[:2]
        if r.random() < 0.05 and depth:
            s["anyOf"] = [self.schema(depth + 1)]
        if r.random() < 0.05:
            s["$defs"] = {"x": {"type": "string"}}
        return s

    def tool(self):
        r = self.r
        f = {"name": r.choice(["get_weather", "search", "f"]), "description": self.text(),
             "parameters": self.schema()}
        if r.random() < 0.1:
            f["return"] = self.schema(2)
        if r.random() < 0.1:
            f["strict"] = True
        for key in ("description", "parameters"):
            if r.random() < 0.08:
                del f[key]
        return {"type": "function", "function": f} if r.random() < 0.9 else f

    def content(self):
        r = self.r
        x = r.random()
        if self.plain or x < 0.65:
            return self.text()
        if x < 0.75:
            return None
        parts = []
        for _ in range(r.randrange(4)):
            parts.append(r.choice([
                {"type": "text", "text": self.text()}, {"type": "text", "text": self.text()},
                {"type": "image"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
                {"type": "image", "image": "y.png"}, {"type": "video", "video": "v"}, {"text": "t"},
                {"type": "audio", "audio": "a"}, "bare"]))
        return parts

    def call(self):
        r = self.r
        args = r.choice([{"city": "Paris"}, {}, {"a": self.value(), "b": self.value()},
                         "{\"city\": \"Paris\"}", {"n": 1.0, "é": ["x"]}, None])
        if self.plain and not isinstance(args, dict):
            args = {"x": self.value()}
        f = {"name": r.choice(["get_weather", "f"]), "arguments": args}
        c = {"id": r.choice(["call_1", "abcdefghi", "123456789"]), "type": "function", "function": f}
        if not self.plain and r.random() < 0.1:
            c = f
        if not self.plain and r.random() < 0.1:
            c.pop("id", None)
        return c

    def message(self, role):
        r = self.r
        m = {"role": role}
        if self.plain or r.random() < 0.95:
            m["content"] = self.content()
        if role == "assistant":
            if r.random() < 0.35:
                m["tool_calls"] = [self.call() for _ in range(r.choice([1, 1, 1, 2, 0]))]
            if r.random() < 0.2:
                m[r.choice(["reasoning_content", "reasoning", "thinking"])] = self.text()
        if role == "tool":
            m["tool_call_id"] = r.choice(["call_1", "abcdefghi", "123456789"])
            if r.random() < 0.5:
                m["name"] = "f"
            if r.random() < 0.1:
                m["content"] = self.value()
        if r.random() < 0.05:
            m["name"] = "Bob"
        return m

    def messages(self):
        r = self.r
        roles = ["system"] if r.random() < 0.4 else []
        if r.random() < 0.75:
            for _ in range(r.randrange(1, 4)):
                roles += ["user", "assistant"]
                if r.random() < 0.3:
                    roles += ["tool"] * r.choice([1, 1, 2]) + ["assistant"]
            if r.random() < 0.7:
                roles.append("user")
        else:
            roles += [r.choice(["user", "assistant", "tool", "system", "developer", "query", "document",
                                "observation"]) for _ in range(r.randrange(5))]
        return [self.message(role) for role in roles]

    def variables(self):
        r = self.r
        v = {"messages": self.messages(), "tools": None, "documents": None,
             "add_generation_prompt": r.random() < 0.6}
        if r.random() < 0.4:
            v["tools"] = [self.tool() for _ in range(r.randrange(1, 3))] if r.random() < 0.95 else []
        if r.random() < 0.1:
            v["documents"] = [{"title": self.text(), "text": self.text()}
                              for _ in range(r.randrange(3))]
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            if r.random() < 0.8:
                v[name] = f"<{name[:3]}>"
        extra = {"enable_thinking": [True, False], "thinking": [True, False],
                 "reasoning_effort": ["low", "high", "none"], "thinking_budget": [0, 128],
                 "tools_in_user_message": [True, False], "date_string": ["26 Jul 2024"],
                 "custom_tools": [None, []], "builtin_tools": [["code_interpreter"], []],
                 "xml_tools": [None, []], "python_tools": [None], "add_vision_id": [True],
                 "model_identity": ["I am."], "keep_past_thinking": [True], "is_first": [True],
                 "continue_final_message": [True, False], "preserve_thinking": [True],
                 "controls": [{"length": "long", "originality": "none"}],
                 "response_format": [{"type": "json_object"}], "functions": [None, []],
                 "system_message": ["sys"], "truncate_history_thinking": [True, False]}
        for name in r.sample(list(extra), r.choice([0, 0, 1, 3])):
            v[name] = r.choice(extra[name])
        if r.random() < 0.05:
            del v[r.choice(list(v))]
        return v


def mutate(rng, source):
    pieces = ["{%", "%}", "{{", "}}", "-%}", "{%-", "'", "\"", "(", ")", "[", "]", "|", ".", ",", " if ",
              " else ", "endif", "endfor", " not ", " in ", "is ", "~", "+", "{#", "#}", "\n", "  ", "loop",
              "set ", "x", "1", ":", "=", "%", "*", "**", "{% raw %}", "{% endraw %}", "\\", "none"]
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(source) + 1)
        x = rng.random()
        if x < 0.4:
            source = source[:at] + rng.choice(pieces) + source[at:]
        elif x < 0.8:
            source = source[:at] + source[at + rng.randrange(1, 6):]
        else:
            to = rng.randrange(len(source) + 1)
            source = source[:at] + source[to:to + rng.randrange(30)] + source[at:]
    return source


def reference(env, source, variables):
    try:
        text = env.from_string(source).render(**variables)
        text.encode()
        return {"text": text}
    except Exception as e:  # whatever Python raises is a failure of the template
        return {"error": f"{type(e).__name__}: {e}"}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--binary", default="build/golden_templates")
    p.add_argument("--shared", default=os.environ.get("SLUICE_SHARED", "../shared"))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--show", type=int, default=10)
    p.add_argument("--mutate", action="store_true")
    o = p.parse_args()
    files = sorted(glob.glob(f"{o.shared}/data/chat_templates/*/*.jinja"))
    if not files:
        print(f"no templates under {o.shared}/data/chat_templates")
        return 2
    sources = {f: open(f, encoding="utf-8").read() for f in files}
    env, ours = environment(), Ours(o.binary)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bad = failed = 0
    for i in range(o.count):
        rng = random.Random(o.seed * 1000003 + i)
        name = rng.choice(files)
        source = sources[name]
        if o.mutate:
            source = mutate(rng, source)
        variables = Conversation(rng).variables()
        want = reference(env, source, variables)
        got = ours.render(source, variables)
        failed += "error" in want
        if not differs(want, got):
            continue
        bad += 1
        if bad > o.show:
            continue
        print(f"--- {os.path.relpath(name, o.shared)}, seed {o.seed}, case {i}")
        if "text" in want and "text" in got:
            a, b = want["text"], got["text"]
            at = next((k for k in range(min(len(a), len(b))) if a[k] != b[k]), min(len(a), len(b)))
            print(f"  python: {a[max(0, at - 60):at + 60]!r}\n  ours:   {b[max(0, at - 60):at + 60]!r}")
        else:
            print(f"  python: {str(want)[:300]}\n  ours:   {str(got)[:300]}")
    ours.close()
    print(f"{o.count} conversations, {failed} of them fail in Python, {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
