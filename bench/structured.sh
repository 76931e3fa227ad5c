#!/usr/bin/env bash
# Compile and mask times of structured output with the Llama 3 and Qwen vocabularies, on the schemas
# of ../shared/data/structured_output; writes bench/results/structured.json.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
shared=${SLUICE_SHARED:-../shared}
build=${BUILD:-build}
ninja -C "$build" bench_structured >/dev/null
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/llama3" "$dir/qwen3"
gzip -dc "$shared/data/tokenizers/llama3/tokenizer.json.gz" >"$dir/llama3/tokenizer.json"
gzip -dc "$shared/data/tokenizers/qwen2/tokenizer.qwen3.json.gz" >"$dir/qwen3/tokenizer.json"
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
{
    echo "{\"machine\": \"$cpu, one thread\", \"commit\": \"$(git rev-parse --short HEAD)\", \"date\": \"$(date +%F)\", \"vocabularies\": ["
    for name in llama3 qwen3; do
        "$build/bench_structured" $name "$dir/$name" "$shared/data/structured_output/schemas.jsonl"
        [ $name = qwen3 ] || echo ","
    done
    echo "]}"
} >bench/results/structured.json
cat bench/results/structured.json
