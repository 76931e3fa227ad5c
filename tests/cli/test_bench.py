"""bench: what is printed and saved has vLLM's names and adds up. No figure is asserted, only that it
is one.

SPDX-License-Identifier: Apache-2.0"""

import json
import re
import tempfile
import unittest

from common import MODEL, Server, free_port, lines, main, run

SMALL = ["--num-prompts", "6", "--input-len", "20", "--output-len", "8"]


class Offline(unittest.TestCase):
    def saved(self, *args):
        with tempfile.NamedTemporaryFile() as f:
            code, out, err = run("bench", *args, "--output-json", f.name)
            self.assertEqual(code, 0, err)
            return out, json.load(f)

    def test_throughput(self):
        out, j = self.saved("throughput", MODEL, *SMALL)
        self.assertRegex(out, r"Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, "
                              r"[\d.]+ output tokens/s\n")
        self.assertIn("Total num prompt tokens:  120\n", out)
        self.assertIn("Total num output tokens:  48\n", out)
        self.assertEqual(set(j), {"elapsed_time", "num_requests", "total_num_tokens",
                                  "requests_per_second", "tokens_per_second",
                                  "output_tokens_per_second"})
        self.assertEqual((j["num_requests"], j["total_num_tokens"]), (6, 168))
        self.assertAlmostEqual(j["tokens_per_second"] * j["elapsed_time"], 168, delta=0.01)

    def test_throughput_of_a_trace(self):
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as f:
            f.write("arrived_s,input_tokens,output_tokens\n0,10,3\n0.1,11,4\n0.2,9000,4\n0.3,12,5\n")
            f.flush()
            code, out, err = run("bench", "throughput", MODEL, "--trace", f.name)
            self.assertEqual(code, 0, err)
            self.assertIn("1 requests are longer", err)
            self.assertIn("Total num output tokens:  12\n", out)
            self.assertIn("Time to first token", out)
            f.write("x,y\n")
            f.flush()
            code, _, err = run("bench", "throughput", MODEL, "--trace", f.name)
            self.assertEqual((code, "line 6" in err), (1, True), err)

    def test_latency(self):
        out, j = self.saved("latency", MODEL, "--batch-size", "2", "--input-len", "8",
                            "--output-len", "4", "--num-iters", "3", "--num-iters-warmup", "1")
        self.assertEqual(set(j), {"avg_latency", "latencies", "percentiles"})
        self.assertEqual(list(j["percentiles"]), ["10", "25", "50", "75", "90", "99"])
        self.assertEqual(len(j["latencies"]), 3)
        self.assertRegex(out, r"Avg latency: [\d.]+ seconds\n10% percentile latency: ")

    def test_startup(self):
        _, j = self.saved("startup", MODEL, "--num-iters-cold", "1", "--num-iters-warm", "2",
                          "--num-iters-warmup", "0")
        for key in ("cold_startup", "warm_startup", "cold_compilation", "warm_compilation"):
            self.assertIn(f"avg_{key}_time", j)
            self.assertIn(f"{key}_times", j)
            self.assertIn(f"{key}_percentiles", j)
        self.assertEqual((len(j["cold_startup_times"]), len(j["warm_startup_times"])), (1, 2))
        self.assertGreater(j["avg_warm_startup_time"], 0)


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--served-model-name", "tiny")

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.__exit__()

    def bench(self, *args):
        with tempfile.TemporaryDirectory() as d:
            code, out, err = run("bench", "serve", "--port", self.server.port, "--model", MODEL,
                                 "--served-model-name", "tiny", "--save-result", "--result-dir", d,
                                 "--result-filename", "r.json", *args)
            self.assertEqual(code, 0, out + err)
            with open(d + "/r.json", encoding="utf-8") as f:
                return out, json.load(f)

    def test_block_and_fields(self):
        out, j = self.bench(*SMALL, "--save-detailed", "--label", "x", "--metadata", "k=v",
                            "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles",
                            "50,99.9", "--goodput", "ttft:100000", "e2el:100000")
        self.assertIn("============ Serving Benchmark Result ============\n", out)
        for name in ("Successful requests:", "Benchmark duration (s):", "Total input tokens:",
                     "Total generated tokens:", "Request throughput (req/s):",
                     "Request goodput (req/s):", "Output token throughput (tok/s):",
                     "Peak output token throughput (tok/s):", "Peak concurrent requests:",
                     "Total token throughput (tok/s):", "Mean TTFT (ms):", "Median TPOT (ms):",
                     "P99.9 ITL (ms):", "P50 E2EL (ms):"):
            self.assertRegex(out, "(?m)^" + re.escape(f"{name:<40} ") + r"[\d.]+ *$")
        want = """date endpoint_type backend label model_id tokenizer_id num_prompts k request_rate
            burstiness max_concurrency duration completed failed total_input_tokens
            total_output_tokens request_throughput request_goodput output_throughput
            total_token_throughput max_output_tokens_per_s max_concurrent_requests rtfx mean_ttft_ms
            median_ttft_ms std_ttft_ms p50_ttft_ms p99.9_ttft_ms mean_e2el_ms input_lens output_lens
            ttfts itls start_times generated_texts errors""".split()
        self.assertEqual([k for k in want if k not in j], [])
        self.assertEqual((j["completed"], j["failed"], j["request_rate"]), (6, 0, "inf"))
        self.assertEqual((j["total_input_tokens"], j["total_output_tokens"]), (120, 48))
        self.assertEqual(j["model_id"], "tiny")
        self.assertEqual(j["output_lens"], [8] * 6)
        # tokens that came while the client was not running arrive in one piece
        self.assertTrue(all(0 < len(i) <= 7 for i in j["itls"]), j["itls"])
        self.assertEqual(j["request_goodput"], j["request_throughput"])
        self.assertGreaterEqual(j["mean_e2el_ms"], j["mean_ttft_ms"])

    def test_rate_concurrency_chat_probes(self):
        _, j = self.bench(*SMALL, "--request-rate", "30", "--burstiness", "0.5", "--backend",
                          "openai-chat", "--max-concurrency", "2", "--num-warmups", "1",
                          "--temperature", "0", "--extra-body", '{"seed": 3}', "--header", "A=b",
                          "--probe-request-rate", "20")
        self.assertEqual((j["completed"], j["max_concurrency"]), (6, 2))
        self.assertEqual(j["total_output_tokens"], 48)
        self.assertGreaterEqual(j["probe_completed"], 1)
        self.assertLessEqual(j["max_concurrent_requests"], 6)

    def test_append(self):
        with tempfile.TemporaryDirectory() as d:
            for _ in range(2):
                run("bench", "serve", "--port", self.server.port, "--model", MODEL,
                    "--served-model-name", "tiny", *SMALL, "--append-result", "--result-dir", d,
                    "--result-filename", "r.json")
            with open(d + "/r.json", encoding="utf-8") as f:
                self.assertEqual(len(lines(f.read())), 2)

    def test_failures_are_counted(self):
        code, out, err = run("bench", "serve", "--port", self.server.port, "--model", MODEL,
                             "--served-model-name", "nobody", *SMALL)
        self.assertEqual(code, 1)
        self.assertRegex(out, r"Failed requests: +6")
        self.assertIn("HTTP 404", err)

    def test_nobody_listens(self):
        code, _, err = run("bench", "serve", "--port", free_port(), *SMALL)
        self.assertEqual((code, "no server answers" in err), (1, True), err)

    def test_usage(self):
        for args in (["--request-rate", "0"], ["--goodput", "itl:3"], ["--percentile-metrics", "x"],
                     ["--metric-percentiles", "101"], ["--ramp-up-strategy", "linear"]):
            self.assertEqual(run("bench", "serve", *args)[0], 2, args)


if __name__ == "__main__":
    main()
