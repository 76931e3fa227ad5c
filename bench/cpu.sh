#!/usr/bin/env bash
# The CPU's table: kernels and whole steps of Llama-3.2-1B (dummy weights) as shares of what the
# machine can do, measured in turn with them. Writes bench/results/cpu.json.
#
#     bench/cpu.sh              on an idle machine, a few minutes
#     THREADS=1 bench/cpu.sh    with one thread CPU time is measured, which other load hardly enters
#     STEPS=0 bench/cpu.sh      kernels only
#
# Rows against llama.cpp need its binaries (LLAMA_BIN=DIR) and are reported as skipped without.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build} threads=${THREADS:-2} model=bench/configs/llama-3.2-1b
[ -f "$build/build.ninja" ] || cmake -S . -B "$build" -G Ninja > /dev/null
ninja -C "$build" sluice bench_cpu_kernels > /dev/null
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$build/sluice" bench ceilings --threads "$threads" --output-json "$out/ceilings.json"
for what in bf16 int8 int4 attention; do
    "$build/bench_cpu_kernels" "$threads" amx "$what" 2> /dev/null | tee "$out/$what.txt"
done

# One request after the other: a prompt alone, then the same with 32 tokens more.
latency() { # name, batch, input, output, flags...
    local name=$1 batch=$2 input=$3 output=$4
    shift 4
    "$build/sluice" bench latency "$model" --load-format dummy --skip-tokenizer-init \
        --threads "$threads" --max-model-len 2048 --max-num-batched-tokens 512 \
        --kv-cache-memory-bytes 1G --no-enable-prefix-caching --num-iters-warmup 1 \
        --num-iters 3 --batch-size "$batch" --input-len "$input" --output-len "$output" \
        --output-json "$out/$name.json" "$@" > /dev/null
}
if [ "${STEPS:-1}" != 0 ]; then
    for q in bf16 int8 int4; do
        flags=()
        [ $q = bf16 ] || flags=(--quantization $q)
        latency prefill-$q 1 512 1 "${flags[@]}"
        latency start-$q 1 16 1 "${flags[@]}"
        latency decode-$q 1 16 33 "${flags[@]}"
    done
fi
[ -n "${LLAMA_BIN:-}" ] || echo "llama.cpp: skipped (LLAMA_BIN is not set)"

python3 bench/cpu_report.py "$out" bench/results/cpu.json "$(git rev-parse --short HEAD)"
