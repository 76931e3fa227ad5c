"""Structured output over HTTP on the real model: whatever is sampled validates with Python's
jsonschema, matches the regex, is one of the choices; mistakes are a 400 that names the field, and the
server lives.

SPDX-License-Identifier: Apache-2.0"""

import concurrent.futures
import itertools
import json
import os
import re
import sys
import unittest
import urllib.error

try:
    import jsonschema
except ImportError:
    print("skip: no jsonschema package")
    sys.exit(77)

from wire import MODEL, SIM, Server, ask, main

SHARED = os.path.join(os.environ.get("SLUICE_SHARED", "../shared"), "data/structured_output")

OWN = {
    "person": {"type": "object", "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "caf\u00e9"]}, "maxItems": 3}},
        "required": ["name", "born"], "additionalProperties": False},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1.5, "maximum": 99.25},
                "minItems": 2, "maxItems": 4},
    "tree": {"$defs": {"node": {"type": "object", "properties": {
        "v": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    "shape": {"oneOf": [
        {"type": "object", "properties": {"kind": {"const": "dot"}, "x": {"type": "integer"}},
         "required": ["kind", "x"], "additionalProperties": False},
        {"type": "object", "properties": {"kind": {"const": "box"}, "w": {"type": "boolean"}},
         "required": ["kind"], "additionalProperties": False}]},
    "if": {"type": "object", "properties": {"k": {"enum": [1, 2]}, "s": {"type": "null"}},
           "required": ["k"], "if": {"properties": {"k": {"const": 1}}, "required": ["k"]},
           "then": {"required": ["s"]}, "additionalProperties": False},
    "formats": {"type": "object", "properties": {
        f: {"type": "string", "format": f} for f in ("date-time", "uuid", "ipv4", "time")},
        "required": ["date-time", "uuid", "ipv4", "time"], "additionalProperties": False},
}


def schemas_of_the_data():
    """Some of each family of the generated schemas, if the data is there."""
    path = os.path.join(SHARED, "schemas.jsonl")
    if not os.path.exists(path):
        return
    seen = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            family = row["name"].split("/")[0]
            seen[family] = seen.get(family, 0) + 1
            if seen[family] % 12 == 1 and family not in ("wide", "deep"):
                yield row["name"], row["schema"]


def without(schema, word):
    """The same without a keyword that a grammar does not promise."""
    if isinstance(schema, dict):
        return {k: without(v, word) for k, v in schema.items() if k != word}
    return [without(v, word) for v in schema] if isinstance(schema, list) else schema


class Structured(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-num-seqs", "16")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def complete(self, **more):
        return self.server.post("/v1/completions", {
            "model": MODEL, "prompt": "Write an example.\n", "max_tokens": 100, "seed": 1, **more})

    def chat(self, **more):
        return self.server.post("/v1/chat/completions", {
            "model": MODEL, "messages": [{"role": "user", "content": "Give me an example."}],
            "max_tokens": 100, "seed": 2, **more})

    def validate(self, name, schema, choices):
        """Every choice that ended by itself; the others are beginnings."""
        checker = jsonschema.Draft202012Validator(
            without(schema, "uniqueItems"), format_checker=jsonschema.FormatChecker())
        ended = 0
        for c in choices:
            text = c["text"] if "text" in c else c["message"]["content"]
            if c["finish_reason"] != "stop":
                self.assertEqual(c["finish_reason"], "length")
                continue
            ended += 1
            error = next(checker.iter_errors(json.loads(text)), None)
            self.assertIsNone(error, f"{name}: {text}: {error and error.message}")
        return ended

    def test_every_sampled_output_validates(self):
        every = int(os.environ.get("SLUICE_SCHEMAS_EVERY", "1")) # sanitizers take one in a few
        schemas = [*OWN.items(), *itertools.islice(schemas_of_the_data(), 0, None, every)]

        def sample(schema):
            return self.complete(structured_outputs={"json": schema}, temperature=1.2, n=2,
                                 max_tokens=100)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(sample, [s for _, s in schemas]))
        ended = sum(self.validate(name, schema, a["choices"])
                    for (name, schema), a in zip(schemas, answers))
        print(f"{ended} of {2 * len(schemas)} sampled outputs ended in time; all validate")
        self.assertGreater(ended, len(schemas) // 5)

    def test_greedy_and_response_format(self):
        for name, schema in OWN.items():
            rf = {"type": "json_schema",
                  "json_schema": {"name": name, "schema": schema, "strict": True}}
            self.validate(name, schema, self.chat(response_format=rf, temperature=0)["choices"])
        a = self.chat(response_format={"type": "json_object"}, temperature=0)["choices"][0]
        self.assertTrue(a["message"]["content"].startswith("{"))
        self.chat(response_format={"type": "text"}, max_tokens=3)

    def test_regex_choice_grammar_and_tag(self):
        def texts(**so):
            a = self.complete(structured_outputs=so, n=4, temperature=1.5, max_tokens=60)
            return [c["text"] for c in a["choices"]]
        for t in texts(regex=r"\d{3}-[a-f]{2,4}(x|yz)"):
            self.assertRegex(t, r"^\d{3}-[a-f]{2,4}(x|yz)$")
        for t in texts(choice=["yes", "no", "perhaps"]):
            self.assertIn(t, ["yes", "no", "perhaps"])
        for t in texts(grammar='root ::= "SELECT " col (", " col){1,2}\ncol ::= [a-c]'):
            self.assertRegex(t, "^SELECT [a-c](, [a-c]){1,2}$")
        for t in texts(grammar='start: A B?\nA: "x"\nB: /[yz]/'):
            self.assertRegex(t, "^x[yz]?$")
        tag = {"type": "structural_tag", "format": {"type": "tag", "begin": "<n>", "content": {
            "type": "json_schema", "json_schema": {"enum": [1, 22]}}, "end": "</n>"}}
        for t in texts(structural_tag=json.dumps(tag)):
            self.assertRegex(t, "^<n>(1|22)</n>$")
        a = self.complete(response_format=tag, max_tokens=30)
        self.assertRegex(a["choices"][0]["text"], "^<n>(1|22)</n>$")
        for t in texts(json={"type": "array", "items": {"type": "null"}, "minItems": 2,
                             "maxItems": 2}, disable_any_whitespace=True):
            self.assertRegex(t, r"^\[null, ?null\]$")

    def test_with_logprobs_stop_min_tokens_and_streams(self):
        so = {"regex": "[ab]{3}c"}
        a = self.complete(structured_outputs=so, logprobs=2, temperature=0)["choices"][0]
        self.assertRegex(a["text"], "^[ab]{3}c$")
        self.assertEqual(len(a["logprobs"]["tokens"]), len(a["logprobs"]["token_logprobs"]))
        self.assertTrue(all(-9999 < x <= 1e-5 for x in a["logprobs"]["token_logprobs"]))
        # nothing but the end may follow: min_tokens and bad words give way, the answer stays whole
        b = self.complete(structured_outputs=so, min_tokens=40, temperature=0)["choices"][0]
        self.assertTrue(b["text"].startswith(a["text"]))
        c = self.complete(structured_outputs={"choice": ["yes"]}, bad_words=["yes", "y"])
        self.assertEqual(c["choices"][0]["text"], "yes")
        d = self.complete(structured_outputs={"regex": "[ab]{40}"}, stop=["a", "b"])
        self.assertEqual(d["choices"][0]["finish_reason"], "stop")

    def test_beams_follow_it(self):
        schema = {"type": "object", "properties": {
            "kind": {"enum": ["dot", "box", "line"]}, "solid": {"type": "boolean"}},
            "required": ["kind", "solid"], "additionalProperties": False}
        answer = self.complete(structured_outputs={"json": schema, "disable_any_whitespace": True},
                               use_beam_search=True, n=4, temperature=0, max_tokens=60)
        self.assertEqual(self.validate("shape", schema, answer["choices"]), 4)
        values = {json.dumps(json.loads(c["text"])) for c in answer["choices"]}
        self.assertGreater(len(values), 1)
        two = self.chat(structured_outputs={"choice": ["left", "right"]}, use_beam_search=True, n=2,
                        temperature=0)
        self.assertEqual(sorted(c["message"]["content"] for c in two["choices"]), ["left", "right"])

    def test_others_are_untouched(self):
        """Requests whose grammars explode or are nonsense, all the while an ordinary one runs."""
        def body(so):
            return {"model": MODEL, "prompt": "x", "max_tokens": 4, "structured_outputs": so}

        wide = {"type": "object", "properties": {f"p{i}": {"oneOf": [
            {"type": "string", "pattern": f"^(a|b)*{j}(a|b){{40}}$"} for j in range(8)]}
            for i in range(40)}}
        loop = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                "$ref": "#/$defs/a"}
        deep = {"type": "array"}
        for _ in range(700):
            deep = {"type": "array", "items": deep, "minItems": 1}
        power = {"allOf": [{"anyOf": [{"multipleOf": p}, {"minimum": p}]}
                           for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)]}
        cases = [{"json": wide}, {"json": loop}, {"json": deep}, {"json": power},
                 {"json": {"enum": [f"{i:06}" * 20 for i in range(30000)]}},
                 {"json": {"const": 1, "enum": [2]}}, {"json": {"minLength": 9, "maxLength": 2,
                                                                "type": "string"}},
                 {"regex": "((a+)+)+$b"}, {"regex": "(a{1,500}){1,500}"}, {"regex": "(" * 5000},
                 {"grammar": "root ::= root root | root"},
                 {"structural_tag": {"structures": 3, "triggers": []}}]
        want = self.complete(max_tokens=80, temperature=0.8)["choices"][0]["text"]

        def hostile(so):
            a = ask(self.server, "POST", "/v1/completions", body(so))
            if a.status == 200:  # it could be enforced after all, and cleanly ended
                return a.json()["choices"][0]["finish_reason"] in ("stop", "length")
            error = a.json()["error"]
            return (a.status == 400 and error["param"].startswith("structured_outputs")
                    and error["message"].startswith("structured_outputs."))

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            sent = [(so, pool.submit(hostile, so)) for so in cases]
            while not all(f.done() for _, f in sent):
                again = self.complete(max_tokens=80, temperature=0.8)["choices"][0]["text"]
                self.assertEqual(again, want)
            for so, f in sent:
                self.assertTrue(f.result(), str(so)[:200])

    def test_mistakes_are_400_and_name_the_field(self):
        deep = {"type": "string", "pattern": "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"}
        cases = [
            ({"json": {"type": "string", "pattern": "(?=x)"}}, "/pattern"),
            ({"json": {"properties": {"a": {"format": "regex", "type": "string"}}}},
             "/properties/a/format"),
            ({"json": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "no text can match"),
            ({"json": {"$ref": "http://127.0.0.1:1/x"}}, "leaves the document"),
            ({"json": "{"}, "not valid JSON"),
            ({"json": deep}, "too "),
            ({"regex": "(a|b)*a(a|b){60}"}, "structured_outputs.regex"),
            ({"regex": "("}, "structured_outputs.regex"),
            ({"grammar": "root ::= x"}, "'x' is not defined"),
            ({"grammar": "root ::= a\na ::= b\nb ::= a \"x\" | \"y\""}, "left recursive"),
            ({"choice": []}, "structured_outputs.choice"),
            ({"structural_tag": "{}"}, "structured_outputs.structural_tag"),
            ({}, "You must use one kind"),
            ({"regex": "a", "choice": ["a"]}, "one kind"),
        ]
        for so, words in cases:
            with self.assertRaises(urllib.error.HTTPError) as e:
                self.complete(structured_outputs=so, max_tokens=5)
            body = json.loads(e.exception.read())
            self.assertEqual(e.exception.code, 400, so)
            self.assertIn(words, body["error"]["message"])
        self.assertEqual(self.complete(structured_outputs={"choice": ["ok"]})["choices"][0]["text"],
                         "ok")


class Simulated(unittest.TestCase):
    """Steps in flight change nothing; a simulator knows no language, and is held to one."""

    def test_depths_give_equal_outputs(self):
        said = []
        for depth in "1", "2", "4":
            with Server(*SIM, "--sim-depth", depth, "--sim-step-ms", "0.1") as s:
                said.append([s.post("/v1/completions", {
                    "model": MODEL, "prompt": "x", "max_tokens": 120, "seed": i, "n": 2,
                    "structured_outputs": {"json": OWN["person"]}})["choices"] for i in range(4)])
        for other in said[1:]:
            self.assertEqual(said[0], other)
        for choice in said[0][0]:
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["text"]), OWN["person"])

    def test_config_flag(self):
        with Server(*SIM, "--structured-outputs-config",
                    '{"backend": "auto", "disable_any_whitespace": true}') as s:
            a = s.post("/v1/completions", {
                "model": MODEL, "prompt": "x", "max_tokens": 60,
                "structured_outputs": {"json": {"type": "array", "items": {"enum": [0, 1]},
                                                "minItems": 3, "maxItems": 3}}})
            self.assertTrue(re.fullmatch(r"\[[01], ?[01], ?[01]\]", a["choices"][0]["text"]))


if __name__ == "__main__":
    main()
