"""schemathesis reads /openapi.json and tries what it finds: no answer may be a 5xx, and every
answer must be one that the document promises.

SPDX-License-Identifier: Apache-2.0"""

import os
import subprocess
import sys
import tempfile

try:
    import schemathesis  # noqa: F401
except ImportError:
    print("skip: no schemathesis package")
    sys.exit(77)

from wire import SIM, Server, ask, wait_idle

EXAMPLES = os.environ.get("SLUICE_SCHEMA_EXAMPLES", "12")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance," \
         "response_schema_conformance"
# A fixed seed, so that a failure in CI fails again here; --max-model-len keeps answers short.
RUN = """
import sys
from schemathesis.cli import schemathesis
sys.argv[0] = "schemathesis"
sys.exit(schemathesis())
"""


def run(server):
    with tempfile.TemporaryDirectory() as cache:
        return subprocess.run(
            [sys.executable, "-c", RUN, "run", server.base + "/openapi.json", "--checks", CHECKS,
             "--max-examples", EXAMPLES, "--seed", "1", "--phases", "examples,coverage,fuzzing",
             "--request-timeout", "20", "--no-color"],
            cwd=cache, timeout=280, check=False).returncode


if __name__ == "__main__":
    with Server(*SIM, "--max-model-len", "64", "--enable-tokenizer-info-endpoint",
                "--disable-uvicorn-access-log", "--enable-auto-tool-choice",
                "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3") as s:
        code = run(s)
        ok = code == 0 and ask(s, "GET", "/health").status == 200 and wait_idle(s)
    print(f"{1 if ok else 0} passed, {0 if ok else 1} failed, 0 skipped")
    sys.exit(0 if ok else 1)
