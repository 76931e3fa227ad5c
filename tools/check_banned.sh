#!/usr/bin/env bash
# The library never ends the process, prints, reads the environment, or calls what cannot be bounded.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

bad=0
# The name as a call, not as part of another one; comments and strings are taken out first.
look() { # what, pattern, files...
    local what=$1 pattern=$2 hits
    shift 2
    hits=$(python3 - "$pattern" "$@" <<'PY'
import re, sys
pattern = re.compile(sys.argv[1])
blank = lambda m: re.sub(r'[^\n]', ' ', m.group(0))
for path in sys.argv[2:]:
    text = open(path, encoding='utf-8').read()
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)
    for number, line in enumerate(text.split('\n'), 1):
        if pattern.search(line):
            print(f'{path}:{number}: {line.strip()}')
PY
)
    if [ -n "$hits" ]; then
        printf '%s\n' "$hits" | sed "s|$|   <- $what|"
        bad=1
    fi
}

mapfile -t library < <(find src -name '*.[ch]' | sort)
mapfile -t all < <(find src cmd examples -name '*.[ch]' 2>/dev/null | sort)
mapfile -t outside_base < <(printf '%s\n' "${library[@]}" | grep -v '^src/base/' || true)
call='(?<![A-Za-z0-9_.>])'

look 'never in the library' "$call(exit|_exit|printf|puts|putchar|getenv|setenv|system)\s*\(" "${library[@]}"
look 'only base/status.c ends a program that is wrong about itself' "${call}abort\s*\(" \
    $(printf '%s\n' "${library[@]}" | grep -v '^src/base/status.c$')
look 'not bounded' "$call(strcpy|sprintf|vsprintf|gets|atoi|atol|atof|alloca|strtok)\s*\(" "${all[@]}"
[ ${#outside_base[@]} = 0 ] ||
    # (what jansson allocated is given back with free)
    look 'allocate through base/mem.h' "$call(malloc|calloc|realloc|strdup|strndup|aligned_alloc|posix_memalign)\s*\(" "${outside_base[@]}"

[ $bad = 0 ] && echo "banned calls: none"
exit $bad
