"""The checks that CI leans on notice what they are for.

SPDX-License-Identifier: Apache-2.0"""

import os
import subprocess
import tempfile
import unittest

from common import main


def check(script, files):
    """Runs a check over a made-up tree; gives (exit code, output)."""
    with tempfile.TemporaryDirectory() as d:
        for path, text in files.items():
            os.makedirs(os.path.dirname(f"{d}/{path}"), exist_ok=True)
            with open(f"{d}/{path}", "w", encoding="utf-8") as f:
                f.write(text)
        done = subprocess.run([f"tools/{script}", d], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr


def include(path):
    return f'#include "{path}"\n'


class Layers(unittest.TestCase):
    def test_right_ways(self):
        code, out = check("check_layers.sh", {
            "src/http/a.c": include("engine/x.h") + include("sluice.h"),
            "src/engine/a.c": include("sched/x.h") + include("text/y.h"),
            "src/sched/a.c": include("core/x.h") + include("base/y.h"),
            "src/backend/cpu/a.c": include("backend/cpu/b.h") + include("backend/ref/b.h"),
            "cmd/serve.c": include("util.h")})
        self.assertEqual(code, 0, out)

    def test_wrong_ways(self):
        for path, target in (("src/base/a.c", "core/x.h"), ("src/core/a.c", "backend/x.h"),
                             ("src/sched/a.c", "text/x.h"), ("src/sched/a.c", "engine/x.h"),
                             ("src/engine/a.c", "http/x.h"), ("src/http/a.c", "sched/x.h"),
                             ("src/backend/cpu/a.c", "backend/cuda/x.h"),
                             ("src/base/a.c", "x.h"), ("src/odd/a.c", "base/x.h"),
                             ("cmd/serve.c", "engine/core.h"), ("examples/e.c", "base/mem.h")):
            files = {"src/base/ok.c": "", path: include(target), "src/backend/ok.c": ""}
            code, out = check("check_layers.sh", files)
            self.assertEqual(code, 1, (path, target))
            self.assertIn(f"{path}:1", out)


class Banned(unittest.TestCase):
    def test_calls(self):
        for call in ("exit(1)", "printf(x)", "getenv(x)", "strcpy(a, b)", "sprintf(a, b)", "atoi(a)",
                     "alloca(3)", "abort()", "malloc(3)"):
            code, out = check("check_banned.sh",
                              {"src/text/a.c": f"void f(void)\n{{\n    {call};\n}}\n"})
            self.assertEqual(code, 1, call)
            self.assertIn("src/text/a.c:3", out)

    def test_mentions_and_other_names(self):
        code, out = check("check_banned.sh", {"src/text/a.c": """
/* never printf() nor
   exit() here */
const char *s = "free(x) \\" strcpy(a)"; // atoi(x)
void f(struct x *o) { mem_free(o); o->free(o); free(o); my_exit(1); snprintf(b, 1, ""); fprintf(e, ""); }
"""})
        self.assertEqual(code, 0, out)


if __name__ == "__main__":
    main()
