#!/usr/bin/env bash
# The library never ends the process, prints, reads the environment, or calls what cannot be bounded.
# With a folder as argument it looks there instead (tests/cli/test_checks.py gives it a wrong tree).
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
exec python3 - <<'PY'
import pathlib, re, sys

# Who may not call what. `free` is not among them: what jansson allocated is given back with it.
RULES = [
    ("never in the library", lambda p: p.startswith("src/"),
     "exit|_exit|printf|puts|putchar|getenv|setenv|system"),
    ("only base/status.c ends a program that is wrong about itself",
     lambda p: p.startswith("src/") and p != "src/base/status.c", "abort"),
    ("not bounded", lambda p: True,
     "strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|alloca|strtok"),
    ("allocate through base/mem.h",
     lambda p: p.startswith("src/") and not p.startswith("src/base/"),
     "malloc|calloc|realloc|strdup|strndup|aligned_alloc|posix_memalign"),
]
# The name as a call, not as part of another or as a member; comments and strings are blanked first.
RULES = [(what, where, re.compile(rf"(?<![A-Za-z0-9_.>])({names})\s*\(")) for what, where, names in RULES]
NOISE = re.compile(r"""/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.S)

bad = 0
for path in sorted(p for d in ("src", "cmd", "examples") for p in pathlib.Path(d).rglob("*.[ch]")):
    text = NOISE.sub(lambda m: re.sub(r"[^\n]", " ", m.group(0)), path.read_text(encoding="utf-8"))
    for number, line in enumerate(text.split("\n"), 1):
        for what, where, pattern in RULES:
            if where(str(path)) and pattern.search(line):
                print(f"{path}:{number}: {line.strip()}   <- {what}")
                bad = 1
print("banned calls: " + ("see above" if bad else "none"))
sys.exit(bad)
PY
