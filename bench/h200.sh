#!/usr/bin/env bash
# The GPU's table: checks, kernels and whole steps of Llama-3.1-8B (dummy weights) on one NVIDIA GPU,
# as shares of what it can do. Rows go to bench/results/h200.json, merged with those of other parts.
#
#     bench/h200.sh check decode prefill trace     each part takes a minute or two
#     BIN=DIR bench/h200.sh decode                 binaries built elsewhere
#     OUT=FILE bench/h200.sh decode                rows go there
#
# Parts: check (the tests of tests/gpu), sanitize (compute-sanitizer over some of them), decode,
# prefill, trace (requests of bench/traces/azure_conv.csv, all at once), fp8 (FP8 weights against
# bf16), fixed (FP8 weights and KV, prompts and answers of fixed lengths, all at once; SHARE=0.3:
# of as many as take a minute), models (a decode step of every shape in bench/configs at batch 1,
# and the memory that it takes).
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-build} out=${OUT:-bench/results/h200.json} model=bench/configs/llama-3.1-8b
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

# latency BATCH INPUT OUTPUT FLAG...: seconds of one batch, start to end
latency() {
    "$bin/sluice" bench latency "$model" --load-format dummy --device cuda --skip-tokenizer-init \
        --batch-size "$1" --input-len "$2" --output-len "$3" --num-iters-warmup 1 --num-iters "${ITERS:-3}" "${@:4}" \
        --output-json "$raw/latency.json" > "$raw/latency.log" 2>&1 || cat "$raw/latency.log" >&2
    python3 -c "import json; print(json.load(open('$raw/latency.json'))['avg_latency'])"
}

part_check() {
    for test in sample narrow fp8 pebble families; do "$bin/gpu_$test"; done
    for test in api_pebble families encoders invariance; do "$bin/golden_$test" cuda; done
}

part_sanitize() {
    compute-sanitizer --tool memcheck --error-exitcode 9 "$bin/gpu_pebble" short
    # Only ours: cuBLASLt's kernels report hazards of their own.
    compute-sanitizer --tool racecheck --racecheck-report analysis --error-exitcode 9 \
        --kernel-name kns=_kernel "$bin/gpu_pebble" short
}

part_decode() {
    "$bin/gpu_narrow" speed | tee "$raw/narrow.txt"
    "$bin/gpu_kernels" | tee "$raw/kernels.txt"
    for batch in 1 64 256; do
        echo "step $batch $(latency $batch 1024 16) $(latency $batch 1024 80)" | tee -a "$raw/steps.txt"
    done
}

part_prefill() {
    [ -s "$raw/kernels.txt" ] || "$bin/gpu_kernels" | tee "$raw/kernels.txt"
    echo "prefill 8 2048 $(latency 8 2048 1)" | tee -a "$raw/steps.txt"
}

part_trace() {
    python3 - "$raw/trace.csv" << 'PY'
import csv, sys
rows = list(csv.DictReader(open("bench/traces/azure_conv.csv")))[:1000]
with open(sys.argv[1], "w") as f:
    f.write("arrived_s,input_tokens,output_tokens\n")
    for r in rows:
        f.write(f"0,{min(int(r['input_tokens']), 4096)},{min(int(r['output_tokens']), 1024)}\n")
PY
    "$bin/sluice" bench throughput "$model" --load-format dummy --device cuda \
        --skip-tokenizer-init --max-model-len 8192 --trace "$raw/trace.csv" --num-prompts 1000 \
        2>&1 | tee "$raw/throughput.txt"
}

part_fp8() {
    for q in none fp8; do
        local flags=()
        [ $q = none ] || flags=(--quantization $q)
        echo "weights $q step $(latency 1 1024 16 "${flags[@]}") $(latency 1 1024 80 "${flags[@]}")" \
            "prefill $(latency 8 2048 1 "${flags[@]}")" | tee -a "$raw/fp8.txt"
    done
}

# Numbers of prompts that take TensorRT-LLM a minute.
part_fixed() {
    while read -r input output prompts; do
        prompts=$(python3 -c "print(max(1, round($prompts * ${SHARE:-1})))")
        "$bin/sluice" bench throughput "$model" --load-format dummy --device cuda --skip-tokenizer-init \
            --quantization fp8 --kv-cache-dtype fp8 --max-model-len 4608 --no-enable-prefix-caching \
            --input-len $input --output-len $output --num-prompts $prompts ${FIXED_FLAGS:-} \
            > "$raw/fixed.log" 2>&1 || cat "$raw/fixed.log" >&2
        echo "fixed $input $output $prompts: $(grep Throughput: "$raw/fixed.log")" | tee -a "$raw/fixed.txt"
    done << 'SHAPES'
128 128 13083
128 2048 768
1000 1000 1065
2048 128 1658
2048 2048 357
SHAPES
}

# What the card has in use while "$@" runs, at most, and has in all: MiB
most_memory() {
    while sleep 0.2; do
        nvidia-smi --query-gpu=memory.used,memory.total --format=csv,noheader,nounits
    done > "$raw/memory.txt" &
    local watcher=$!
    "$@"
    kill $watcher
    sort -n "$raw/memory.txt" | tail -1 > "$raw/most.txt"
}

part_models() {
    [ -s "$raw/kernels.txt" ] || "$bin/gpu_kernels" | tee "$raw/kernels.txt"
    for config in bench/configs/*/; do
        model=$config
        local short long
        short=$(latency 1 1024 16)
        most_memory latency 1 1024 80 > "$raw/long.txt"
        long=$(cat "$raw/long.txt")
        echo "model $(basename "$config") $short $long $(tr -d , < "$raw/most.txt")" |
            tee -a "$raw/models.txt"
    done
}

for part in "$@"; do "part_$part"; done
python3 bench/h200_report.py "$raw" "$out" "${COMMIT:-$(git rev-parse --short HEAD)}"
