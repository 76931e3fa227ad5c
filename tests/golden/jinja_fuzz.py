#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Random templates, rendered by Python's Jinja2 (set up as transformers does) and by ours.

    python3 tests/golden/jinja_fuzz.py [--binary build/golden_templates] [--seed N] [--count N]

Both must give the same text, or both must fail. Differences are printed, smallest first, and the
exit code is 1. Texts that show an address are passed over."""
import argparse
import datetime
import json
import random
import resource
import subprocess
import sys
import warnings

import jinja2
import jinja2.ext
import jinja2.sandbox

warnings.filterwarnings("ignore")
sys.setrecursionlimit(1000)


class Generation(jinja2.ext.Extension):
    """{% generation %}: renders its body, as transformers' tracker does."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _body(self, context, caller):
        return caller()


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = datetime.datetime(2024, 7, 26, 12).strftime
    return env


CONTEXT = {
    "a": 1, "b": 2.5, "neg": -7, "z": 0, "big": 12345678901234567890, "f": False, "t": True,
    "n": None, "s": "héllo wörld", "e": "", "sp": "  x y\t\nz ", "u": "ΑΣΑΣ ǆ ß İ straße",
    "html": "<b>&\"'</b>", "num": "42", "fl": "3.14", "lines": "one\ntwo\r\n\nthree\n",
    "l": [1, "two", None, True, 2.0], "nums": [3, 1, 2, 10, -4], "words": ["b", "a", "C", "B"],
    "el": [], "nest": [[1, 2], [3, [4, 5]], []], "d": {"k": "v", "n": None, "x": [1, {"y": "it's"}]},
    "ed": {}, "deep": {"a": {"b": {"c": "deep"}}, "items": 1},
    "ppl": [{"n": "Al", "a": 3, "g": "x"}, {"n": "bo", "a": 1, "g": "Y"}, {"n": "Cy", "a": 2}],
    "msgs": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo <b>",
              "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]},
             {"role": "user", "content": None}],
}

STR_METHODS = {
    "upper": [], "lower": [], "title": [], "capitalize": [], "swapcase": [], "casefold": [],
    "strip": ["chars?"], "lstrip": ["chars?"], "rstrip": ["chars?"], "split": ["sep?", "int?"],
    "rsplit": ["sep?", "int?"], "splitlines": ["bool?"], "startswith": ["affix", "int?", "int?"],
    "endswith": ["affix", "int?", "int?"], "replace": ["str", "str", "int?"],
    "find": ["str", "int?", "int?"], "rfind": ["str", "int?", "int?"], "index": ["str"],
    "count": ["str", "int?", "int?"], "join": ["strs"], "center": ["width", "char?"],
    "ljust": ["width", "char?"], "rjust": ["width", "char?"], "zfill": ["width"],
    "partition": ["sep1"], "rpartition": ["sep1"], "removeprefix": ["str"],
    "removesuffix": ["str"], "isalpha": [], "isdigit": [], "isalnum": [], "isspace": [],
    "islower": [], "isupper": [], "istitle": [], "isnumeric": [], "isdecimal": [],
    "isidentifier": [], "isascii": [], "isprintable": [], "expandtabs": ["int?"],
}
FILTERS = {
    "abs": [], "capitalize": [], "center": ["width?"], "count": [], "d": ["any?", "bool?"],
    "default": ["any?", "bool?"], "dictsort": ["bool?"], "e": [], "first": [], "float": ["any?"],
    "forceescape": [], "format": ["any?", "any?"], "groupby": ["attr"], "indent": ["width?", "bool?", "bool?"],
    "int": ["any?", "base?"], "join": ["str?", "attr?"], "last": [], "length": [], "list": [],
    "lower": [], "items": [], "max": ["bool?", "attr?"], "min": ["bool?", "attr?"],
    "replace": ["str", "str", "int?"], "reverse": [], "round": ["int?", "method?"], "safe": [],
    "sort": ["bool?", "bool?", "attr?"], "string": [], "striptags": [], "sum": ["attr?", "any?"],
    "title": [], "trim": ["chars?"], "truncate": ["width?", "bool?", "str?", "int?"],
    "unique": ["bool?", "attr?"], "upper": [], "urlencode": [], "wordcount": [],
    "wordwrap": ["width?", "bool?", "str?", "bool?"], "xmlattr": ["bool?"], "tojson": [],
    "batch": ["int", "any?"], "slice": ["int", "any?"], "attr": ["str"], "filesizeformat": ["bool?"],
    "map": None, "select": None, "reject": None, "selectattr": None, "rejectattr": None,
}
TESTS = {
    "odd": 0, "even": 0, "divisibleby": 1, "defined": 0, "undefined": 0, "filter": 0, "test": 0,
    "none": 0, "boolean": 0, "false": 0, "true": 0, "integer": 0, "float": 0, "lower": 0,
    "upper": 0, "string": 0, "mapping": 0, "number": 0, "sequence": 0, "iterable": 0,
    "callable": 0, "escaped": 0, "in": 1, "eq": 1, "equalto": 1, "ne": 1, "gt": 1, "ge": 1,
    "lt": 1, "le": 1, "greaterthan": 1, "lessthan": 1,
}
STRINGS = ["", "a", "ab", "l", "o", " ", "\\n", "\\t", "x-y", "é", "ö", "<i>", "it's", "%s", "{}",
           "%d %s", "1", "-3", "0x1f", "1e3", " 7 ", "foo bar", "a,b,,c", "user", "Σ", "\\u4e2d",
           "\\U0001F600", "n", "g", "a.b", "{0} {1}", "{x:>5}", "%5.2f|%-4d|%x", "T i"]
VARS = list(CONTEXT) + ["missing", "missing.x", "d.k", "d.nope", "deep.a.b.c", "l[0]", "msgs[0].role",
                        "msgs[1].tool_calls", "nest[1]", "s[1:4]", "ppl[0]", "loop", "d.items()",
                        "d.keys()", "d.values()", "range(5)", "range(4, -3, -2)", "dict(q=1)",
                        "'<x>'|safe", "namespace(v=1)"]


class Gen:
    """One random template."""

    def __init__(self, rng):
        self.r = rng
        self.names = []
        self.macros = []
        self.in_loop = False

    def string(self):
        s = self.r.choice(STRINGS)
        if self.r.random() < 0.5 and '"' not in s:
            return '"' + s + '"'
        return "'" + s.replace("'", "\\'") + "'"

    def number(self):
        return self.r.choice(["0", "1", "2", "3", "7", "10", "-1", "-2", "100", "2.5", "0.1", "1e3",
                              "1e16", "1.0", "3.999", "1_000", "0x1F", "0b101", "0o17", "1e-7",
                              "9223372036854775807", "123456789012345678901234567890", "1e300",
                              "0.5", "-0.0", "4294967296"])

    def atom(self):
        x = self.r.random()
        if x < 0.45:
            return self.r.choice(VARS + self.names * 3)
        if x < 0.62:
            return self.string()
        if x < 0.78:
            return self.number()
        if x < 0.86:
            return self.r.choice(["true", "false", "none", "True", "None"])
        if x < 0.93:
            return "[" + ", ".join(self.expr(3) for _ in range(self.r.randrange(4))) + "]"
        if x < 0.96:
            n = self.r.randrange(3)
            return "(" + "".join(self.expr(3) + ", " for _ in range(n)) + ")"
        keys = [self.r.choice(["'a'", "'k'", "1", "2.0", "true", "none", "(1, 2)", "'z'", self.string()])
                for _ in range(self.r.randrange(4))]
        return "{" + ", ".join(f"{k}: {self.expr(3)}" for k in keys) + "}"

    def arg(self, kind):
        kind = kind.rstrip("?")
        r = self.r
        if r.random() < 0.06:
            return self.expr(3)
        if kind == "int":
            return r.choice(["0", "1", "2", "3", "-1", "5", "10", "-3", "true"])
        if kind == "width":
            return r.choice(["0", "1", "5", "8", "12", "20", "-2"])
        if kind == "bool":
            return r.choice(["true", "false", "1", "0"])
        if kind == "base":
            return r.choice(["10", "16", "2", "8", "36", "0"])
        if kind == "method":
            return r.choice(["'common'", "'ceil'", "'floor'", "'x'"])
        if kind in ("sep", "sep1"):
            return r.choice(["' '", "','", "'l'", "'ö'", "'\\n'", "none" if kind == "sep" else "'o'", "''", "'ab'"])
        if kind == "chars":
            return r.choice(["' '", "'h'", "'dlh'", "none", "'é<'", "''", "'\\n\\t '"])
        if kind == "char":
            return r.choice(["'*'", "' '", "'é'", "'ab'"])
        if kind == "affix":
            return r.choice([self.string(), "('h', 'x')", "'h'", "'d'", "()", "['h']"])
        if kind == "strs":
            return r.choice(["words", "['a', 'b']", "'abc'", "l", "d", "el"])
        if kind == "attr":
            return r.choice(["'n'", "'a'", "'g'", "0", "1", "'x.y'", "'a,n'", "none", "'missing'", "'0'"])
        if kind == "str":
            return self.string()
        return self.atom()

    def args(self, kinds):
        out = []
        for k in kinds:
            if k.endswith("?") and self.r.random() < 0.5:
                break
            out.append(self.arg(k))
        return ", ".join(out)

    def filter(self):
        r = self.r
        name = r.choice(list(FILTERS))
        kinds = FILTERS[name]
        if name == "map":
            x = r.random()
            if x < 0.5:
                extra = r.choice(["", ", default='?'", ", default=0"])
                return f"map(attribute={self.arg('attr')}{extra})"
            inner = r.choice(["upper", "string", "length", "int", "first", "abs", "tojson", "list", "trim"])
            return f"map('{inner}')"
        if name in ("select", "reject"):
            if r.random() < 0.3:
                return name
            t = r.choice(list(TESTS))
            return f"{name}('{t}'" + (f", {self.expr(3)}" if TESTS[t] else "") + ")"
        if name in ("selectattr", "rejectattr"):
            if r.random() < 0.3:
                return f"{name}({self.arg('attr')})"
            t = r.choice(list(TESTS))
            return f"{name}({self.arg('attr')}, '{t}'" + (f", {self.expr(3)}" if TESTS[t] else "") + ")"
        if name == "tojson":
            return r.choice(["tojson", "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)",
                             "tojson(sort_keys=true)", "tojson(separators=(',', ':'))",
                             "tojson(indent=0)", "tojson(indent='--')"])
        a = self.args(kinds)
        return f"{name}({a})" if a or r.random() < 0.2 else name

    def test(self):
        t = self.r.choice(list(TESTS))
        neg = "not " if self.r.random() < 0.3 else ""
        if not TESTS[t]:
            return f"is {neg}{t}"
        if self.r.random() < 0.4:
            return f"is {neg}{t} {self.atom_simple()}"
        return f"is {neg}{t}({self.expr(3)})"

    def atom_simple(self):
        return self.r.choice([self.string(), "3", "2", "words", "'a'", "[1, 2]", "d"])

    def slice(self):
        part = lambda: self.r.choice(["", "", "0", "1", "2", "-1", "-3", "5", "100", "none"])
        s = f"{part()}:{part()}"
        if self.r.random() < 0.4:
            s += ":" + self.r.choice(["", "1", "2", "-1", "-2", "0"])
        return s

    def expr(self, depth=0):
        r = self.r
        if depth >= 4 or r.random() < 0.12 + 0.12 * depth:
            return self.atom()
        sub = lambda: self.expr(depth + 1)
        x = r.random()
        if x < 0.24:
            return f"{self.wrap(sub())}|{self.filter()}"
        if x < 0.36:
            base = self.wrap(self.r.choice([self.string(), "s", "sp", "u", "lines", "html", sub()]))
            m = r.choice(list(STR_METHODS))
            return f"{base}.{m}({self.args(STR_METHODS[m])})"
        if x < 0.46:
            return f"{self.wrap(sub())} {r.choice(['+', '-', '*', '/', '//', '%', '~', '+', '~'])} {self.wrap(sub())}"
        if x < 0.48:
            return f"{self.wrap(self.r.choice([self.number(), 'a', 'b']))} ** {r.choice(['0', '2', '3', '-1', '1.0', '10', '64'])}"
        if x < 0.56:
            return f"{self.wrap(sub())} {r.choice(['==', '!=', '<', '<=', '>', '>=', 'in', 'not in'])} {self.wrap(sub())}"
        if x < 0.59:
            return f"{self.wrap(sub())} < {self.wrap(sub())} {r.choice(['<', '==', '>='])} {self.wrap(sub())}"
        if x < 0.65:
            return f"{self.wrap(sub())} {self.test()}"
        if x < 0.72:
            return f"{self.wrap(sub())} {r.choice(['and', 'or'])} {self.wrap(sub())}"
        if x < 0.75:
            return f"{r.choice(['not ', '-', '+'])}{self.wrap(sub())}"
        if x < 0.83:
            # Jinja folds constants; a slice of one that has none is undefined then, an error else.
            if r.random() < 0.4:
                return f"{self.wrap(r.choice(VARS + [self.string()]))}[{self.slice()}]"
            return f"{self.wrap(sub())}[{r.choice([sub(), '0', '-1', self.string()])}]"
        if x < 0.87:
            return f"{self.wrap(sub())}.{r.choice(['k', 'n', 'a', 'items()', 'keys()', 'get(' + sub() + ')', 'real', 'x', '0', 'count(' + sub() + ')', 'index(' + sub() + ')', 'values()', 'copy()', 'append(1)', '__class__'])}"
        if x < 0.93:
            els = f" else {sub()}" if r.random() < 0.7 else ""
            return f"({sub()} if {sub()}{els})"
        if x < 0.95 and self.macros:
            return f"{r.choice(self.macros)}({self.args(['any?', 'any?'])})"
        if x < 0.97:
            return f"'{r.choice(['%s', '%5s|', '%-6s', '%r', '%d', '%05d', '%.2f', '%x', '%e', '%g', '%c', '%%', '%+d', '% d', '%s %s', '%(k)s', '%5.1f', '%o', '%i', '%G', '%08.3f', '%#x', '%.3s'])}' % {self.wrap(sub())}"
        spec = r.choice(["", ":>8", ":<8", ":^9", ":*^9", ":05", ":+", ":.2f", ":,", ":x", ":#b", ":e", ":g",
                         ":%", ":_", ":10.3f", ":s", ":d", "!r", "!s:>6", ":.3", ":.1", ":G", ":,.2f", ":n", ":c", ":=+6", ":o", ":X"])
        return f"'{{{r.choice(['', '0', 'x'])}{spec}}}'.format({sub()}, x={sub()})"

    def wrap(self, e):
        return e if e.isidentifier() or self.r.random() < 0.1 else f"({e})"

    def ws(self, open_):
        sign = self.r.choice(["", "", "", "-", "+"] if open_ else ["", "", "", "-"])
        return sign

    def tag(self, body):
        return "{%" + self.ws(True) + " " + body + " " + self.ws(False) + "%}"

    def text(self):
        return self.r.choice(["", "", "x", " ", "\n", "  \n  ", "a b\n", "\n\n", "\t", "é", "{ }", "# ",
                              "\r\n", " \n"])

    def new_name(self):
        return self.r.choice(["v", "w", "a", "s", "q", "l", "n2"])

    def block(self, depth):
        return "".join(self.stmt(depth + 1) for _ in range(self.r.randrange(1, 4)))

    def for_(self, depth):
        r = self.r
        it = r.choice(["nums", "words", "l", "ppl", "msgs", "range(3)", "d", "s[:3]", "el", "nest",
                       "d.items()", "words|map('upper')", "nums|select('odd')", self.expr(2)])
        target = r.choice(["v", "w", "i", "x", "k, v"]) if "items" not in it else "k, v"
        names = [t.strip() for t in target.split(",")]
        cond = f" if {self.expr(2)}" if r.random() < 0.2 else ""
        rec = " recursive" if r.random() < 0.08 else ""
        save = list(self.names), self.in_loop
        self.names += names + ["loop.index", "loop.first", "loop.last", "loop.length", "loop.revindex0",
                               "loop.previtem", "loop.nextitem", "loop.cycle('p', 'q')",
                               "loop.changed(" + names[-1] + ")", "loop.depth"]
        if rec:
            self.names.append("loop([1, 2]) if loop.depth < 3")
        self.in_loop = True
        out = self.tag(f"for {target} in {it}{cond}{rec}") + self.block(depth)
        if r.random() < 0.3:
            self.in_loop = save[1]
            out += self.tag("else") + self.block(depth)
        self.names, self.in_loop = save
        return out + self.tag("endfor")

    def stmt(self, depth=0):
        r = self.r
        x = r.random()
        if depth > 3 or x < 0.30:
            return self.text() + "{{" + self.ws(True).replace("+", "") + " " + self.expr(1) + " " + self.ws(False) + "}}"
        if x < 0.38:
            return self.text()
        if x < 0.50:
            name = self.new_name()
            e = self.expr(1)
            self.names.append(name)
            if r.random() < 0.15:
                return self.tag(f"set {name}, w = {e}, {self.expr(2)}")
            return self.tag(f"set {name} = {e}")
        if x < 0.60:
            out = self.tag(f"if {self.expr(1)}") + self.block(depth)
            if r.random() < 0.3:
                out += self.tag(f"elif {self.expr(1)}") + self.block(depth)
            if r.random() < 0.5:
                out += self.tag("else") + self.block(depth)
            return out + self.tag("endif")
        if x < 0.74:
            return self.for_(depth)
        if x < 0.79:
            name = r.choice(["m1", "m2"])
            params = r.choice(["", "p", "p, q=2", "p=a, q='z'", "caller=none", "p, q=p"])
            save = list(self.names), self.in_loop
            self.names += [t.split("=")[0].strip() for t in params.split(",") if t]
            self.names += r.choice([[], ["varargs"], ["kwargs"], ["caller()"]])
            self.in_loop = False
            body = self.block(depth)
            self.names, self.in_loop = save
            self.macros.append(name)
            return self.tag(f"macro {name}({params})") + body + self.tag("endmacro")
        if x < 0.82 and self.macros:
            p = r.choice(["", "(v)", "(v, w=3)"])
            save = list(self.names), self.in_loop
            self.names += ["v"] if p else []
            self.in_loop = False
            out = (self.tag(f"call{p} {r.choice(self.macros)}({self.args(['any?', 'any?'])})") + self.block(depth)
                   + self.tag("endcall"))
            self.names, self.in_loop = save
            return out
        if x < 0.86:
            name = self.new_name()
            f = f" | {self.filter()}" if r.random() < 0.3 else ""
            out = self.tag(f"set {name}{f}") + self.block(depth) + self.tag("endset")
            self.names.append(name)
            return out
        if x < 0.88:
            return self.tag(f"filter {self.filter()}") + self.block(depth) + self.tag("endfilter")
        if x < 0.90:
            save = list(self.names)
            self.names.append("v")
            out = self.tag(f"with v = {self.expr(2)}, w = v") + self.block(depth) + self.tag("endwith")
            self.names = save
            return out
        if x < 0.93:
            self.names.append("ns.x")
            return r.choice([self.tag(f"set ns = namespace(x={self.expr(2)})"),
                             self.tag(f"set ns.x = {self.expr(1)}")])
        if x < 0.95 and self.in_loop:
            return self.tag(f"if {self.expr(2)}") + self.tag(r.choice(["break", "continue"])) + self.tag("endif")
        if x < 0.96:
            save = self.in_loop
            self.in_loop = False
            out = self.tag("generation") + self.block(depth) + self.tag("endgeneration")
            self.in_loop = save
            return out
        if x < 0.97:
            return "{#" + self.ws(True) + " c " + self.ws(False) + "#}"
        if x < 0.98:
            return self.tag("raw") + " {{ x }} " + self.tag("endraw")
        return self.tag(f"print {self.expr(1)}")

    def template(self):
        if self.r.random() < 0.6:
            return "{{ " + self.expr() + " }}"
        return "".join(self.stmt() for _ in range(self.r.randrange(1, 6)))


def reference(env, template):
    try:
        text = env.from_string(template).render(**json.loads(json.dumps(CONTEXT)))
        text.encode()
        return {"text": text}
    except Exception as e:  # whatever Python raises is a failure of the template
        return {"error": f"{type(e).__name__}: {e}"}


class Ours:
    """The renderer under test; started again when it dies."""

    def __init__(self, binary):
        self.binary = binary
        self.start()

    def start(self):
        self.p = subprocess.Popen([self.binary, "--lines"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)

    def render(self, template, context=None):
        line = json.dumps({"template": template, "context": CONTEXT if context is None else context})
        try:
            self.p.stdin.write(line.encode() + b"\n")
            self.p.stdin.flush()
            return json.loads(self.p.stdout.readline())
        except (OSError, ValueError):
            self.p.wait()
            self.start()
            return {"error": "CRASHED", "crash": True}

    def close(self):
        self.p.stdin.close()
        self.p.wait()


def differs(want, got):
    if got.get("crash"):
        return True
    if "text" in want and " at 0x" in want["text"].lower():
        return False
    return want.get("text") != got.get("text")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--binary", default="build/golden_templates")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=5000)
    p.add_argument("--show", type=int, default=20)
    o = p.parse_args()
    env, ours = environment(), Ours(o.binary)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # 'x' * 2**32 fails instead
    bad, failed = [], 0
    for i in range(o.count):
        template = Gen(random.Random(o.seed * 1000003 + i)).template()
        want = reference(env, template)
        got = ours.render(template)
        failed += "error" in want
        if differs(want, got):
            bad.append((template, want, got))
    ours.close()
    bad.sort(key=lambda b: len(b[0]))
    for template, want, got in bad[:o.show]:
        print(f"--- {template!r}\n  python: {want}\n  ours:   {got}")
    print(f"{o.count} templates, {failed} of them fail in Python, {len(bad)} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
