#!/usr/bin/env bash
# tests/run_python.sh SLUICE TEST.py [ARGS]: runs one Python test from the repository's root.
#
# The interpreter is .venv's (tools/deps.sh test makes it), else python3. SLUICE_BIN names the binary
# to test. A test exits 0, or 77 with a word about why it skips (a package that is not there), or
# anything else, which is a failure.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."
export SLUICE_BIN=$1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 # no test looks for a model beyond this machine
export PYTHONPATH=tests:tests/cli:tests/http
shift
python=.venv/bin/python
[ -x "$python" ] || python=python3
command -v "$python" >/dev/null || { echo "skip: no python3"; exit 77; }
exec "$python" "$@"
