#!/usr/bin/env bash
# The GPU's table: checks, kernels and whole steps of Llama-3.1-8B (dummy weights) on one NVIDIA GPU,
# as shares of what it can do. Rows go to bench/results/h200.json, merged with those of other parts.
#
#     bench/h200.sh check decode prefill trace     each part takes a minute or two
#     BIN=DIR bench/h200.sh decode                 binaries built elsewhere
#     OUT=FILE bench/h200.sh decode                rows go there
#
# check     the tests of tests/gpu                 sanitize  compute-sanitizer over some of them
# soak      20,000 requests that drive each other out of memory
# decode, prefill                                  fast      both with --fast-nondeterministic
# trace     requests of bench/traces/azure_conv.csv, all at once
# peer      the first 256 of them, here and through transformers (PEER_SECONDS=60 of it)
# serve     the same trace at several rates of arrival, up to 95 % of what `trace` found
# fp8       FP8 weights against bf16
# fixed     FP8 weights and KV, prompts and answers of fixed lengths, all at once (SHARE=0.3: of as
#           many as take a minute)
# start     from nothing to ready                  models    a decode step of every
#           shape in bench/configs at batch 1, and the memory that it takes
# swap      preempted requests computed again, or copied to host memory and back
# speculation  of pebble (SPECULATION=crowd32: a part of it), and what a JSON schema costs; rows go
#           to speculation-h200.json and schema-h200.json beside the others
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-build} out=${OUT:-bench/results/h200.json} model=bench/configs/llama-3.1-8b
raw=$(mktemp -d)
trap 'rm -rf "$raw" ${weights:+"$weights"}; kill $(jobs -p) 2> /dev/null || true' EXIT

dummy=(--load-format dummy --device cuda --skip-tokenizer-init)

# latency BATCH INPUT OUTPUT FLAG...: seconds of one batch, start to end
latency() {
    rm -f "$raw/latency.json"
    "$bin/sluice" bench latency "$model" "${dummy[@]}" --batch-size "$1" --input-len "$2" \
        --output-len "$3" --num-iters-warmup 1 --num-iters "${ITERS:-3}" --log-level info "${@:4}" \
        --output-json "$raw/latency.json" > "$raw/latency.log" 2>&1 || cat "$raw/latency.log" >&2
    python3 -c "import json; print(json.load(open('$raw/latency.json'))['avg_latency'])"
}

part_check() {
    for test in sample products fp8 attention pebble families; do "$bin/gpu_$test"; done
    for test in speculation constrained beam; do "$bin/golden_$test" cuda; done
    for test in api_pebble families encoders invariance; do "$bin/golden_$test" cuda; done
    "$bin/unit_fp8_checkpoint" cuda
}

part_sanitize() {
    compute-sanitizer --tool memcheck --error-exitcode 9 "$bin/gpu_pebble" short
    # Only ours: cuBLASLt's kernels report hazards of their own.
    compute-sanitizer --tool racecheck --racecheck-report analysis --error-exitcode 9 \
        --kernel-name kns=_kernel "$bin/gpu_pebble" short
}

part_decode() {
    "$bin/gpu_products" speed | tee "$raw/products.txt"
    "$bin/gpu_kernels" | tee "$raw/kernels.txt"
    for batch in 1 64 256; do
        echo "step $batch $(latency $batch 1024 16) $(latency $batch 1024 80)" | tee -a "$raw/steps.txt"
    done
}

part_prefill() {
    [ -s "$raw/kernels.txt" ] || "$bin/gpu_kernels" | tee "$raw/kernels.txt"
    echo "prefill 8 2048 $(latency 8 2048 1)" | tee -a "$raw/steps.txt"
}

part_fast() {
    for batch in 64 256; do
        echo "step $batch $(latency $batch 1024 16 --fast-nondeterministic)" \
            "$(latency $batch 1024 80 --fast-nondeterministic)" | tee -a "$raw/steps-fast.txt"
    done
    echo "prefill 8 2048 $(latency 8 2048 1 --fast-nondeterministic)" | tee -a "$raw/steps-fast.txt"
}

# The first N requests, as if all came at once.
trace() {
    echo arrived_s,input_tokens,output_tokens
    awk -F, -v n="$1" 'NR > 1 && NR <= n + 1 {
        print "0," ($2 < 4096 ? $2 : 4096) "," ($3 < 1024 ? $3 : 1024) }' OFS=, bench/traces/azure_conv.csv
}

# throughput N FLAG...: of the first N requests of the trace
throughput() {
    trace "$1" > "$raw/trace.csv"
    "$bin/sluice" bench throughput "$model" "${dummy[@]}" --max-model-len 8192 --trace "$raw/trace.csv" \
        --num-prompts "$1" --no-progress "${@:2}" 2>&1
}

part_trace() {
    throughput 1000 | tee "$raw/throughput.txt"
}

part_peer() {
    throughput 256 | tee "$raw/peer.txt"
    python3 bench/peer.py "$model" "$raw/trace.csv" 256 "${PEER_SECONDS:-60}" 2>&1 | grep '^peer' |
        tee -a "$raw/peer.txt"
}

part_serve() {
    local most rates
    most=$(grep -oP 'Throughput: \K[\d.]+' "$raw/throughput.txt" 2> /dev/null) ||
        most=$(python3 bench/h200_report.py rate "$out")
    rates=$(awk -v m="$most" 'BEGIN { printf "%f,%f,%f,%f", .2 * m, .5 * m, .8 * m, .95 * m }')
    trace 1000 > "$raw/serve.csv"
    python3 bench/rates.py "$bin/sluice" "$raw/serve.csv" "${SERVE_SECONDS:-12}" "$rates" \
        "$bin/sluice" serve "$model" "${dummy[@]}" --max-model-len 8192 | tee "$raw/serve.txt"
}

part_start() {
    weights=$(mktemp -d -p /dev/shm)
    python3 bench/start.py 3 "$bin/sluice" serve "$model" "${dummy[@]}" --max-model-len 8192 |
        tee "$raw/start.txt"
    python3 bench/make_weights.py bench/configs/llama-3.2-1b "$weights" | tee "$raw/load.txt"
    python3 bench/start.py 2 "$bin/sluice" serve "$weights" --device cuda --skip-tokenizer-init \
        --max-model-len 8192 | tee -a "$raw/load.txt"
    rm -r "$weights"
}

part_soak() {
    "$bin/gpu_soak" | tee "$raw/soak.txt"
}

# A KV cache of 64,000 tokens for 160 requests of 256 + 768.
part_swap() {
    for space in 0 4; do
        echo "swap $space $("$bin/sluice" bench throughput "$model" "${dummy[@]}" --max-model-len 4096 \
            --num-gpu-blocks-override 4000 --no-enable-prefix-caching --input-len 256 --output-len 768 \
            --num-prompts 160 --no-progress --swap-space $space 2>&1 | grep Throughput:)" |
            tee -a "$raw/swap.txt"
    done
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
        "$bin/sluice" bench throughput "$model" "${dummy[@]}" \
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
    local model config # latency() takes the former
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

part_speculation() {
    local to
    to=$(dirname "$out")
    export DEVICE=cuda BIN=$bin
    OUT=$to/speculation-h200.json bench/speculation.py ${SPECULATION:-}
    OUT=$to/schema-h200.json bench/schema.py
}

for part in "$@"; do "part_$part"; done
python3 bench/h200_report.py "$raw" "$out" "${COMMIT:-$(git rev-parse --short HEAD)}"
