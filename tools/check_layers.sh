#!/usr/bin/env bash
# Data flows one way: http -> engine -> {text, sched, model, sample} -> core, backend, dist -> base.
# Prints each #include that points elsewhere; exits 1 if there is one. With a folder as argument it
# looks there instead (tests/cli/test_checks.py gives it a wrong tree).
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

# What a file of each folder may include, besides its own folder and sluice.h. A backend's seam is
# above its implementations, so backend/ includes core/ and core/ includes none of the others.
declare -A may=(
    [base]=""
    [core]="base"
    [dist]="base"
    [backend]="base core dist"
    [text]="base core"
    [sample]="base core backend"
    [sched]="base core backend dist"
    [model]="base core backend dist"
    [engine]="base core backend dist text sched model sample"
    [http]="base core engine text"
)
# These commands are examples of the public interface: they see sluice.h and nothing inside.
public=" serve chat complete generate run_batch text_commands prompts progress "

bad=0
complain() {
    echo "$1"
    bad=1
}

while IFS=: read -r file line include; do
    target=${include#*\"}
    target=${target%%\"*}
    folder=${file#src/}
    folder=${folder%%/*}
    [ "$target" = sluice.h ] && continue
    if [[ $target != */* ]]; then
        complain "$file:$line: \"$target\": name the folder too, as in \"base/mem.h\""
        continue
    fi
    to=${target%%/*}
    if [ -z "${may[$folder]+known}" ]; then
        complain "$file:$line: src/$folder is not a layer of docs/ARCHITECTURE.md"
    elif [ "$to" != "$folder" ] && [[ " ${may[$folder]} " != *" $to "* ]]; then
        complain "$file:$line: src/$folder must not include \"$target\""
    fi
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' src --include='*.[ch]' || true)

# A backend's implementations know the seam, and one another only through the reference.
while IFS=: read -r file line include; do
    target=${include#*\"}
    target=${target%%\"*}
    mine=$(cut -d/ -f3 <<<"$file")
    theirs=$(cut -d/ -f2 <<<"$target")
    [[ $target == backend/*/* && $file == src/backend/*/* ]] || continue
    [ "$mine" = "$theirs" ] || [ "$theirs" = ref ] ||
        complain "$file:$line: backend/$mine must not include \"$target\""
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' src/backend --include='*.[ch]' || true)

while IFS=: read -r file line include; do
    target=${include#*\"}
    target=${target%%\"*}
    name=$(basename "$file" | sed 's/\.[ch]$//')
    [[ ($public == *" $name "* || $file == examples/*) && $target == */* ]] &&
        complain "$file:$line: a public command includes \"$target\"; use sluice.h"
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' cmd examples --include='*.[ch]' 2>/dev/null || true)

[ $bad = 0 ] && echo "layers: includes go one way"
exit $bad
