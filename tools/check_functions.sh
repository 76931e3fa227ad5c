#!/usr/bin/env bash
# The ten longest functions, so that growth is seen. Fails only for a parser's sake: no function found.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files 'src/*.c' 'cmd/*.c' | xargs awk '
    FNR == 1 { name = ""; start = 0 }
    /^[A-Za-z_].*\(/ && !/;[ \t]*$/ { name = $0; gsub(/__attribute__\(\([^)]*\)\)?\)/, "", name); sub(/\(.*/, "", name); sub(/.*[ *]/, "", name) }
    /^\{/ && name != "" { start = FNR }
    /^\}/ && start { printf "%5d %s:%d %s\n", FNR - start + 1, FILENAME, start, name; start = 0; name = "" }
' | sort -rn > /tmp/functions.$$
trap 'rm -f /tmp/functions.$$' EXIT
n=$(wc -l < /tmp/functions.$$)
[ "$n" -gt 0 ]
echo "functions: $n; half of them up to $(awk -v n="$n" 'NR == int(n / 2) + 1 { print $1 }' /tmp/functions.$$) lines; the longest:"
head -10 /tmp/functions.$$
