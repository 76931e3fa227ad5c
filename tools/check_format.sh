#!/usr/bin/env bash
# clang-format has nothing to say (or, with --fix, says it).
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(git ls-files '*.c' '*.h' '*.cu')
if [ "${1:-}" = --fix ]; then
    exec clang-format -i "${files[@]}"
fi
clang-format --dry-run --Werror "${files[@]}"
echo "format: ${#files[@]} files"
