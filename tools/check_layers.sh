#!/usr/bin/env bash
# Data flows one way: http -> engine -> draft -> {text, grammar, sched, model, sample, hub} -> core, backend,
# dist -> base; hub stands on base alone.
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
    [hub]="base"
    [text]="base core"
    [grammar]="base core"
    [sample]="base core backend"
    [sched]="base core backend dist"
    [model]="base core backend dist"
    [draft]="base core backend model sample"
    [engine]="base core backend dist text grammar sched model sample draft hub"
    [http]="base core engine text"
)
# These commands are examples of the public interface: they see sluice.h and nothing inside.
public=" serve chat generate run_batch text_commands prompts offline progress sampling_json hub_setup hub_commands hub_progress "

bad=0
complain() {
    echo "$1"
    bad=1
}

check_src() { # file, line, what it includes
    local folder=${1#src/} to=${3%%/*}
    folder=${folder%%/*}
    if [[ $3 != */* ]]; then
        complain "$1:$2: \"$3\": name the folder too, as in \"base/mem.h\""
    elif [ -z "${may[$folder]+known}" ]; then
        complain "$1:$2: src/$folder is not a layer of docs/ARCHITECTURE.md"
    elif [ "$to" != "$folder" ] && [[ " ${may[$folder]} " != *" $to "* ]]; then
        complain "$1:$2: src/$folder must not include \"$3\""
    elif [[ $1 == src/backend/*/* && $3 == backend/*/* ]]; then
        # a backend's implementations know one another only through the reference
        local mine=${1#src/backend/} theirs=${3#backend/}
        [ "${mine%%/*}" = "${theirs%%/*}" ] || [ "${theirs%%/*}" = ref ] ||
            complain "$1:$2: backend/${mine%%/*} must not include \"$3\""
    fi
}

while IFS=: read -r file line include; do
    target=${include#*\"}
    target=${target%%\"*}
    name=${file##*/}
    [ "$target" = sluice.h ] && continue
    if [[ $file == src/* ]]; then
        check_src "$file" "$line" "$target"
    elif [[ ($file == examples/* || $public == *" ${name%.[ch]} "*) && $target == */* ]]; then
        complain "$file:$line: \"$target\": a public command includes sluice.h, nothing inside"
    fi
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' src cmd examples \
    --include='*.[ch]' --include='*.cu' 2>/dev/null || true)

[ $bad = 0 ] && echo "layers: includes go one way"
exit $bad
