#!/usr/bin/env bash
# The CPU's table: kernels and whole steps of Llama-3.2-1B (dummy weights) as shares of what the
# machine can do, measured in turn with them. Writes bench/results/cpu.json and cpu.svg.
#
#     bench/cpu.sh                              on an idle machine, about ten minutes
#     THREADS=1 bench/cpu.sh                    CPU time is measured, which other load hardly enters
#     PARTS="kernels steps" bench/cpu.sh        of: kernels steps threads dnnl llama
#     KEEP=DIR bench/cpu.sh                     raw figures stay in DIR, parts not run come from there
#     RESULT=FILE.json bench/cpu.sh             in place of bench/results/cpu.json
#     LLAMA_BIN=DIR bench/cpu.sh                against llama.cpp: llama-bench, llama-batched-bench
#                                               and llama-quantize are in DIR
#
# Rows against llama.cpp are reported as skipped without its binaries. Its models (4.6 GB) are made
# in LLAMA_GGUF, a folder under /tmp if unset. oneDNN is measured where libdnnl-dev is installed.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build} threads=${THREADS:-2} model=bench/configs/llama-3.2-1b
parts=${PARTS:-kernels steps threads dnnl llama}
[ -f "$build/build.ninja" ] || cmake -S . -B "$build" -G Ninja > /dev/null
ninja -C "$build" sluice bench_cpu_kernels bench_cpu_steps > /dev/null
if [ -n "${KEEP:-}" ]; then
    out=$KEEP
    mkdir -p "$out"
else
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi

has() { [[ " $parts " = *" $1 "* ]]; }

steps() { # threads format
    "$build/bench_cpu_steps" "$model" "$1" "$2" 2> /dev/null | tee "$out/steps-$2-$1.txt"
}

llama() { # format: q8_0, q4_0 or bf16, in turn with our steps
    local gguf=${LLAMA_GGUF:-${TMPDIR:-/tmp}/sluice-llama-gguf}
    mkdir -p "$gguf"
    [ -s "$gguf/1b-bf16.gguf" ] || python3 bench/llama_gguf.py "$model" "$gguf/1b-bf16.gguf"
    [ -s "$gguf/1b-$1.gguf" ] ||
        "$LLAMA_BIN/llama-quantize" "$gguf/1b-bf16.gguf" "$gguf/1b-$1.gguf" "${1^^}" > /dev/null 2>&1
    local ours=bf16
    [ "$1" != q8_0 ] || ours=int8
    [ "$1" != q4_0 ] || ours=int4
    "$build/bench_cpu_steps" "$model" "$threads" $ours 2> /dev/null > "$out/turn-$ours.txt"
    "$LLAMA_BIN/llama-bench" -m "$gguf/1b-$1.gguf" -p 512 -n 0 -t "$threads" -r 2 -fa 1 -o jsonl \
        2> /dev/null > "$out/llama-$1.jsonl"
    "$LLAMA_BIN/llama-batched-bench" -m "$gguf/1b-$1.gguf" -c 24576 -b 2048 -ub 512 -npp 256 \
        -ntg 8 -npl 16,32,64 -pps -fa on -t "$threads" --output-format jsonl 2> /dev/null \
        > "$out/llama-batched-$1.jsonl"
    "$build/bench_cpu_steps" "$model" "$threads" $ours 2> /dev/null >> "$out/turn-$ours.txt"
    rm -f "$out/one-$ours.txt" "$out/llama-one-$1.jsonl"
    for _ in 1 2 3; do # one sequence is as fast as memory, whose speed changes from minute to minute
        "$build/bench_cpu_steps" "$model" "$threads" $ours auto one 2> /dev/null \
            >> "$out/one-$ours.txt"
        "$LLAMA_BIN/llama-bench" -m "$gguf/1b-$1.gguf" -p 0 -n 32 -t "$threads" -r 1 -fa 1 \
            -o jsonl 2> /dev/null >> "$out/llama-one-$1.jsonl"
    done
}

sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1 > "$out/machine.txt"
"$build/sluice" bench ceilings --threads "$threads" --output-json "$out/ceilings.json"
if has kernels; then
    for what in bf16 int8 int4 attention; do
        "$build/bench_cpu_kernels" "$threads" amx "$what" 2> /dev/null | tee "$out/$what.txt"
    done
fi
if has steps; then
    for q in bf16 int8 int4; do steps "$threads" $q; done
fi
if has threads && [ "$threads" != 1 ]; then
    "$build/sluice" bench ceilings --threads 1 --output-json "$out/ceilings-1.json"
    for q in bf16 int8; do steps 1 $q; done
fi
if has dnnl && ninja -C "$build" bench_dnnl > /dev/null 2>&1; then
    OMP_NUM_THREADS=$threads OMP_WAIT_POLICY=passive "$build/bench_dnnl" "$threads" |
        tee "$out/dnnl.txt"
fi
if has llama; then
    if [ -n "${LLAMA_BIN:-}" ]; then
        for q in ${LLAMA_FORMATS:-q8_0 q4_0 bf16}; do llama "$q"; done
    else
        echo "llama.cpp: skipped (LLAMA_BIN is not set)"
    fi
fi
python3 bench/cpu_report.py "$out" "${RESULT:-bench/results/cpu.json}" "$(git rev-parse --short HEAD)"
