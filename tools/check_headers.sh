#!/usr/bin/env bash
# Each header compiles alone, as C17 and (the public one) as C++; each source names its licence.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

bad=0
flags=(-std=c17 -D_GNU_SOURCE -Wall -Wextra -Werror -Iinclude -Isrc -Icmd -Itests)
check() { # a header of one instruction set may use it; *_body.h is included once per set, by design
    local isa=()
    case $1 in
    *_body.h) return ;;
    *_avx2.h) isa=(-mavx2 -mfma -mf16c) ;;
    *_avx512.h) isa=(-march=cooperlake) ;;
    *_amx.h) isa=(-march=sapphirerapids) ;;
    esac
    echo "#include \"$1\"" |
        ${CC:-cc} "${flags[@]}" "${isa[@]}" -x c -fsyntax-only - 2>"$log" || {
        head -3 "$log"
        echo "$1 does not compile alone"
        bad=1
    }
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while read -r header; do
    case $header in
    include/*) check "${header#include/}" ;;
    src/*) check "${header#src/}" ;;
    *) check "${header#*/}" ;;
    esac
done < <(find include src cmd -name '*.h' | sort)
if command -v "${CXX:-c++}" >/dev/null; then
    echo '#include "sluice.h"' | ${CXX:-c++} -Iinclude -x c++ -Wall -Wextra -Werror -fsyntax-only - || bad=1
fi
while read -r file; do
    head -40 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' || {
        echo "$file: no SPDX line"
        bad=1
    }
done < <(git ls-files 'src/*.[ch]' 'cmd/*.[ch]' 'include/*.h' 'examples/*.c' 'tests/*.[ch]' 'tools/*.sh' 'tests/*.py')
[ $bad = 0 ] && echo "headers: each compiles alone; every source names its licence"
exit $bad
