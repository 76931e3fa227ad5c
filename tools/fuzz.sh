#!/usr/bin/env bash
# tools/fuzz.sh SECONDS: builds the fuzz targets with clang and gives each SECONDS on its kept corpus
# (tests/fuzz/corpus/NAME). What crashes is left in build-fuzz/NAME-*; add it to the corpus with the fix.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shopt -s nullglob
sources=(tests/fuzz/*.c)
[ ${#sources[@]} -gt 0 ] || { echo "fuzz: no targets"; exit 77; }

CC=clang cmake -S . -B build-fuzz -G Ninja -DSLUICE_FUZZ=ON -DSLUICE_CUDA=OFF -DSLUICE_SANITIZE=address,undefined \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
targets=()
for source in "${sources[@]}"; do
    targets+=("fuzz_$(basename "$source" .c)")
done
ninja -C build-fuzz "${targets[@]}"
for target in "${targets[@]}"; do
    name=${target#fuzz_}
    mkdir -p "build-fuzz/corpus/$name" "tests/fuzz/corpus/$name"
    echo "fuzz: $name for $seconds s"
    timeout $((seconds * 2 + 120)) "build-fuzz/$target" "build-fuzz/corpus/$name" \
        "tests/fuzz/corpus/$name" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 \
        -artifact_prefix="build-fuzz/$name-" -print_final_stats=1 > "build-fuzz/$name.log" 2>&1 || {
        tail -40 "build-fuzz/$name.log"
        exit 1
    }
    grep -E 'stat::number_of_executed_units|stat::peak_rss_mb' "build-fuzz/$name.log"
done
