#!/usr/bin/env bash
# Installs what building (and testing) needs on Debian 12: tools/deps.sh [build|test|ci]
# Quick when all is there; asks for root through sudo only when something is missing.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-build}
build=(gcc libc6-dev make cmake ninja-build pkg-config
       libevent-dev libjansson-dev libyaml-dev libpcre2-dev libutf8proc-dev libssl-dev libedit-dev
       libhwloc-dev libxxhash-dev libcmocka-dev zlib1g-dev libcurl4-openssl-dev ca-certificates)
tests=(curl python3 python3-venv)
ci=(clang clang-format clang-tidy llvm libclang-rt-14-dev ccache)

case $what in
build) want=("${build[@]}") ;;
test) want=("${build[@]}" "${tests[@]}") ;;
ci) want=("${build[@]}" "${tests[@]}" "${ci[@]}") ;;
*) echo "usage: tools/deps.sh [build|test|ci]" >&2; exit 2 ;;
esac

missing_packages() {
    { dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${want[@]}" 2>/dev/null || true; } |
        awk '$2 == "installed" { print $1 }' | sort -u > "$have"
    printf '%s\n' "${want[@]}" | sort -u | comm -23 - "$have"
}

install_packages() {
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    echo "deps: installing $*"
    "${root[@]}" apt-get update -q >/dev/null
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        "$@" >/dev/null
}

# A Python with the packages of tools/requirements.txt, in .venv; done again when that file changes.
python_packages() {
    local stamp=.venv/.requirements
    if [ -x .venv/bin/python ] && cmp -s tools/requirements.txt "$stamp"; then
        return
    fi
    echo "deps: making .venv for the Python tests"
    rm -rf .venv
    { python3 -m venv .venv || /usr/bin/python3 -m venv .venv; } &&
        .venv/bin/python -m pip install -q --disable-pip-version-check -r tools/requirements.txt &&
        cp tools/requirements.txt "$stamp"
}

if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is not Debian; install by hand: ${want[*]}" >&2
    exit 0
fi
have=$(mktemp)
trap 'rm -f "$have"' EXIT
mapfile -t missing < <(missing_packages)
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

if [ "$what" != build ] && ! python_packages; then
    echo "deps: no Python packages (no network?); the tests that need them will say that they skip" >&2
    rm -rf .venv
fi
