"""Flags: what parses, what is refused and in which words, files, environment, help.

`serve` on a folder that does not exist prints the flags it was given and then fails, so nothing here
needs a model.

SPDX-License-Identifier: Apache-2.0"""

import re
import tempfile
import unittest

from common import main, run

NOWHERE = "/nonexistent/model"


def given(*args, **kw):
    """The 'non-default args' line of a serve that cannot start."""
    code, _, err = run("serve", NOWHERE, *args, **kw)
    assert code == 1, (code, err)
    return re.search(r"non-default args: (\{.*\})", err).group(1)


class Parsing(unittest.TestCase):
    def test_values(self):
        self.assertIn("'max_num_seqs': 8", given("--max-num-seqs", "8"))
        self.assertIn("'max_num_seqs': 8", given("--max_num_seqs=8"))
        self.assertIn("'enable_prefix_caching': False", given("--no-enable-prefix-caching"))
        self.assertIn("'seed': -3", given("--seed", "-3"))
        self.assertIn("'max_model_len': auto", given("--max-model-len", "auto"))
        self.assertIn("'served_model_name': 'a, b'", given("--served-model-name", "a", "b"))
        self.assertIn("'served_model_name': 'a, b, c, d'",
                      given("--served-model-name", "a", "b", "--served-model-name=c",
                            "--served-model-name", "d"))
        self.assertEqual(given(), "{}")

    def test_suffixes_reach_the_value(self):
        with_k = run("serve", NOWHERE, "--port", "65.536k")[2]
        self.assertIn("--port must be from 0 to 65535", with_k)
        self.assertIn("kv_cache_memory_bytes", given("--kv-cache-memory-bytes", "4G"))
        for bad in ("4T", "1.5", "1.0001k", "k", "", "0x10"):
            code, _, err = run("serve", NOWHERE, f"--max-num-seqs={bad}")
            self.assertEqual(code, 2, bad)
            self.assertIn("--max-num-seqs needs a whole number", err)

    def test_short_names_and_json(self):
        given("-tp", "1", "-pp=1", "-dp1")
        given("-O3", "-cc.mode=3", "--structured-outputs-config.backend", "xgrammar")
        given("--hf-overrides", '{"a": {"b": 1}}', "--hf-overrides.a.c", "2")
        code, _, err = run("serve", NOWHERE, "--hf-overrides", "[1]")
        self.assertEqual((code, "needs a JSON object" in err), (2, True))

    def test_keys_stay_secret(self):
        _, out, err = run("serve", NOWHERE, "--api-key", "hunter2", "hunter3")
        self.assertNotIn("hunter", out + err)
        self.assertIn("'api_key': '***'", err)


class Refusals(unittest.TestCase):
    def refuse(self, args, *words):
        code, out, err = run(*args)
        self.assertEqual(code, 2, (args, err))
        self.assertEqual(out, "")
        self.assertEqual(len(err.strip().splitlines()), 1, err)
        for word in words:
            self.assertIn(word, err)

    def test_sentences(self):
        self.refuse(["serve", "m", "--max-num-seq", "4"], "did you mean --max-num-seqs?")
        self.refuse(["serve", "m", "--no-max-num-seqs"], "unknown flag --no-max-num-seqs")
        self.refuse(["serve", "m", "--xyzzy-plugh"], "unknown flag --xyzzy-plugh")
        self.refuse(["serve", "m", "-tp", "2"], "--tensor-parallel-size 2", "not there yet", "only 1")
        self.refuse(["serve", "m", "--enable-lora"], "--enable-lora", "not there yet")
        self.refuse(["serve", "m", "--dtype", "int3"], "one of auto, float32", '"int3"')
        self.refuse(["serve", "m", "--port"], "--port needs a value")
        self.refuse(["serve", "m", "--block-size", "99999999999"], "at most 2147483647")
        self.refuse(["chat", "m", "--port", "1"], "--port is not a flag of `sluice chat`")
        self.refuse(["serve"], "no model given")
        self.refuse(["serve", "a", "--model", "b"], "two models")
        self.refuse(["serve", "a", "b"], "one argument too many")
        self.refuse(["frobnicate"], "is not a command")

    def test_what_happens_anyway_is_fine(self):
        given("-tp", "1", "--no-enable-lora", "--watermark", "0", "--runner", "generate",
              "--scheduler-reserve-full-isl", "--chat-template-content-format=auto")
        self.refuse(["serve", "m", "--no-scheduler-reserve-full-isl"], "not there yet")

    def test_no_effect_is_said_once(self):
        _, _, err = run("serve", NOWHERE, "--trust-remote-code",
                        "--disable-custom-all-reduce")
        self.assertEqual(err.count("accepted and has no effect"), 2)
        self.assertIn("--trust-remote-code", err)


class Sources(unittest.TestCase):
    def yaml(self, text):
        f = tempfile.NamedTemporaryFile("w", suffix=".yaml")
        f.write(text)
        f.flush()
        self.addCleanup(f.close)
        return f.name

    def test_file(self):
        path = self.yaml("max-num-seqs: 8\nserved_model_name: [a, b]\nenable-prefix-caching: false\n"
                         "hf-overrides:\n  rope_theta: 5.0\n  deep: {x: [1, two, null]}\n")
        told = given("--config", path)
        for want in ("'max_num_seqs': 8", "'a, b'", "'enable_prefix_caching': False",
                     '"deep":{"x":[1,"two",null]}'):
            self.assertIn(want, told)

    def test_line_wins_over_file_over_environment(self):
        path = self.yaml("cpu-isa: avx2\nmax-num-seqs: 8\n")
        told = given("--max-num-seqs", "9", "--config", path, env={"SLUICE_CPU_ISA": "ref"})
        self.assertIn("'max_num_seqs': 9", told)
        self.assertIn("'cpu_isa': 'avx2'", told)
        code, _, err = run("serve", NOWHERE, env={"SLUICE_CPU_ISA": "z80"})
        self.assertEqual(code, 2)
        self.assertIn("environment variable SLUICE_CPU_ISA", err)

    def test_bad_files(self):
        for text, word in (("max-num-seq: 8\n", "line 1: unknown flag max-num-seq; did you mean"),
                           ("a: b\n c: [\n", "line"),
                           ("- 1\n", "mapping"),
                           ("ok: &a [*a]\n", "unknown flag ok"), ("port: {a: 1}\n", "--port needs"),
                           ("port: [1, 2]\n", "takes one value"),
                           ("\nport: x\n", "line 2: --port needs"),
                           ("config: x.yaml\n", "cannot name another"),
                           ("a: " * 2000, "line")):
            code, _, err = run("serve", NOWHERE, "--config", self.yaml(text))
            self.assertEqual(code, 2, text[:40])
            self.assertIn(word, err)
        self.assertEqual(run("serve", NOWHERE, "--config", "/nonexistent.yaml")[0], 2)

    def test_a_bomb_of_aliases_ends(self):
        bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n"
                       for i in range(9))
        code, _, err = run("serve", NOWHERE, "--config",
                           self.yaml("hf-overrides:\n" + "".join("  " + l + "\n"
                                                                 for l in bomb.splitlines())),
                           timeout=10)
        self.assertEqual(code, 2)
        self.assertIn("too large", err)


class Help(unittest.TestCase):
    def test_pages(self):
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        for command in ("serve", "chat", "generate", "run-batch", "bench throughput", "render"):
            self.assertIn(command, out)
            _, page, _ = run(*command.split(), "--help")
            self.assertIn(f"usage: sluice {command}", page)
            self.assertLess(max(map(len, page.splitlines())), 101)
        self.assertRegex(run("--version")[1], r"^sluice \d+\.\d+\.\d+\n$")

    def test_topics(self):
        usual, everything = run("serve", "--help")[1], run("serve", "--help=all")[1]
        self.assertNotIn("--tensor-parallel-size", usual)
        self.assertIn("--tensor-parallel-size", everything)
        self.assertIn("--max-num-seqs", run("serve", "--help=scheduler")[1])
        self.assertNotIn("--port", run("serve", "--help=Scheduler")[1])
        self.assertEqual(len(run("serve", "--help=max-num-seqs")[1].splitlines()), 1)
        self.assertEqual(run("serve", "--help=nothing")[0], 2)

    def test_docs_are_this_binary_s(self):
        with open("docs/flags.md", encoding="utf-8") as f:
            self.assertEqual(f.read(), run("--help=markdown")[1],
                             "docs/flags.md: run `build/sluice --help=markdown > docs/flags.md`")

    def test_every_flag_of_the_surface_page(self):
        """Section 4 of vLLM's surface: each parses or is refused by name, never unknown."""
        names = """model served-model-name tokenizer tokenizer-mode trust-remote-code dtype seed
            max-model-len revision quantization enforce-eager max-logprobs logprobs-mode
            skip-tokenizer-init generation-config override-generation-config hf-overrides load-format
            download-dir runner enable-sleep-mode allowed-local-media-path block-size
            gpu-memory-utilization kv-cache-memory-bytes kv-cache-dtype num-gpu-blocks-override
            enable-prefix-caching prefix-caching-hash-algo kv-offloading-size cpu-offload-gb
            max-num-batched-tokens max-num-seqs enable-chunked-prefill long-prefill-token-threshold
            scheduling-policy async-scheduling stream-interval watermark scheduler-reserve-full-isl
            prefill-schedule-interval max-num-scheduled-tokens max-num-partial-prefills
            max-long-partial-prefills tensor-parallel-size pipeline-parallel-size data-parallel-size
            enable-expert-parallel distributed-executor-backend disable-custom-all-reduce enable-lora
            lora-modules max-loras max-lora-rank max-cpu-loras speculative-config
            structured-outputs-config host port uds api-key root-path ssl-keyfile ssl-certfile
            ssl-ca-certs allowed-origins chat-template chat-template-content-format
            default-chat-template-kwargs trust-request-chat-template response-role
            enable-auto-tool-choice tool-call-parser reasoning-parser
            exclude-tools-when-tool-choice-none return-tokens-as-token-ids
            enable-prompt-tokens-details enable-force-include-usage enable-per-request-metrics
            enable-request-id-headers enable-server-load-tracking enable-tokenizer-info-endpoint
            fingerprint-mode enable-log-requests enable-log-outputs max-log-len disable-log-stats
            uvicorn-log-level disable-uvicorn-access-log disable-access-log-for-endpoints
            otlp-traces-endpoint kv-cache-metrics enable-mfu-metrics h11-max-incomplete-event-size
            shutdown-timeout config compilation-config device max-num-queued-reqs
            max-body-bytes""".split()
        page = run("serve", "--help=all")[1]
        missing = [n for n in names if not re.search(rf"--(\[no-\])?{re.escape(n)}\b", page)]
        self.assertEqual(missing, [])


if __name__ == "__main__":
    main()
