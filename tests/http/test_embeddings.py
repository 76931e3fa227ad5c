"""Embeddings, pooling, classification, scores and rankings over HTTP: a decoder that pools (with the
openai package where it is there), and tiny encoders with a classification head.

SPDX-License-Identifier: Apache-2.0"""

import base64
import json
import math
import os
import shutil
import struct
import tempfile
import unittest

from wire import Server, ask, main, metrics, post

ENCODERS = "tests/golden/encoders"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "do", "i", "list", "files", "tar", "a", "cat",
         "##s", "sat", "on", "the", "mat"]


def close(a, b, tolerance=1e-6):
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b))


def encoder(folder, name):
    """A golden's folder with a tokenizer of a few words beside it."""
    out = os.path.join(folder, name)
    shutil.copytree(os.path.join(ENCODERS, name), out)
    vocab = {w: i for i, w in enumerate(WORDS)}
    piece = {"id": "A", "type_id": 0}
    cls, sep = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {
        "SpecialToken": {"id": "[SEP]", "type_id": 0}}
    a, b = {"Sequence": piece}, {"Sequence": {"id": "B", "type_id": 1}}
    special = {w: {"id": w, "ids": [vocab[w]], "tokens": [w]} for w in ("[CLS]", "[SEP]")}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": vocab[w], "content": w, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}
                         for w in WORDS[:4]],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [cls, a, sep],
                           "pair": [cls, a, sep, b, sep], "special_tokens": special},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab}}
    with open(os.path.join(out, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(tokenizer, f)
    return out


class Decoder(unittest.TestCase):
    """Pebble with --runner pooling: its last position's hidden state, of unit length."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--runner", "pooling", "--max-model-len", "128")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def embed(self, **body):
        answer = post(self.server, "/v1/embeddings", body)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def refused(self, path, body, *texts, status=400):
        answer = post(self.server, path, body)
        self.assertEqual(answer.status, status, answer.body)
        for text in texts:
            self.assertIn(text, answer.json()["error"]["message"])

    def test_shapes(self):
        before = metrics(self.server)["vllm:prompt_tokens_total"]
        out = self.embed(input=["How do I list files?", "A cat"])
        self.assertEqual([d["index"] for d in out["data"]], [0, 1])
        self.assertEqual(out["object"], "list")
        self.assertTrue(out["id"].startswith("embd-"))
        self.assertEqual(out["data"][0]["object"], "embedding")
        vector = out["data"][0]["embedding"]
        self.assertEqual(len(vector), 384)
        self.assertAlmostEqual(math.sqrt(sum(x * x for x in vector)), 1, places=5)
        self.assertGreater(out["usage"]["prompt_tokens"], 4)
        self.assertEqual(out["usage"]["total_tokens"], out["usage"]["prompt_tokens"])
        after = metrics(self.server)["vllm:prompt_tokens_total"]
        self.assertEqual(after - before, out["usage"]["prompt_tokens"])

    def test_inputs(self):
        text = "How do I list files?"
        ids = post(self.server, "/tokenize", {"prompt": text}).json()["tokens"]
        one = self.embed(input=text)["data"][0]["embedding"]
        for given in (ids, [ids], [text, text]):
            for d in self.embed(input=given)["data"]:
                self.assertEqual(d["embedding"], one)
        plain = self.embed(input=text, use_activation=False)["data"][0]["embedding"]
        length = math.sqrt(sum(x * x for x in plain))
        self.assertTrue(close([x / length for x in plain], one))
        cut = self.embed(input=ids, truncate_prompt_tokens=3)
        self.assertEqual(cut["usage"]["prompt_tokens"], 3)
        self.assertEqual(cut["data"], self.embed(input=ids[:3])["data"])
        left = self.embed(input=ids, truncate_prompt_tokens=3, truncation_side="left")
        self.assertEqual(left["data"], self.embed(input=ids[-3:])["data"])

    def test_base64(self):
        one = self.embed(input="A cat")["data"][0]["embedding"]
        for dtype, order, form in (("float32", "little", "<384f"), ("float32", "big", ">384f"),
                                   ("float16", "native", "<384e")):
            out = self.embed(input="A cat", encoding_format="base64", embed_dtype=dtype,
                             endianness=order)
            raw = base64.b64decode(out["data"][0]["embedding"], validate=True)
            self.assertTrue(close(struct.unpack(form, raw), one,
                                  1e-8 if dtype == "float32" else 1e-3))

    def test_openai_client(self):
        try:
            import openai
        except ImportError:
            self.skipTest("no openai package")
        client = openai.OpenAI(base_url=self.server.base + "/v1", api_key="key", max_retries=0)
        model = client.models.list().data[0].id
        plain = client.embeddings.create(model=model, input=["A cat"], encoding_format="float")
        packed = client.embeddings.create(model=model, input=["A cat"]) # it asks for base64
        self.assertTrue(close(plain.data[0].embedding, packed.data[0].embedding))
        self.assertEqual(plain.usage.prompt_tokens, packed.usage.prompt_tokens)
        with self.assertRaises(openai.BadRequestError) as e:
            client.embeddings.create(model=model, input="A cat", dimensions=16)
        self.assertIn("does not support Matryoshka", str(e.exception))

    def test_pooling_and_scores(self):
        out = post(self.server, "/pooling", {"input": "A cat"}).json()
        self.assertEqual(out["data"][0]["object"], "pooling")
        self.assertEqual(out["data"][0]["data"], self.embed(input="A cat")["data"][0]["embedding"])
        texts = ["A cat sat", "tar -tf archive.tar"]
        a, b, c = (d["embedding"] for d in self.embed(input=["A cat", *texts])["data"])
        want = [sum(x * y for x, y in zip(a, v)) for v in (b, c)]
        for path in ("/score", "/v1/score"):
            for names in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"),
                          ("text_1", "text_2")):
                out = post(self.server, path, {names[0]: "A cat", names[1]: texts}).json()
                self.assertTrue(close([d["score"] for d in out["data"]], want))
                self.assertEqual(out["data"][0]["object"], "score")
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            out = post(self.server, path, {"query": "A cat", "documents": texts}).json()
            scores = [r["relevance_score"] for r in out["results"]]
            self.assertEqual(scores, sorted(scores, reverse=True))
            first = out["results"][0]
            self.assertEqual(first["document"]["text"], texts[first["index"]])
            out = post(self.server, path, {"query": "A cat", "documents": texts, "top_n": 1}).json()
            self.assertEqual(len(out["results"]), 1)

    def test_refusals(self):
        e = "/v1/embeddings"
        self.refused(e, {}, "1 validation error", "'input'", "Field required")
        self.refused(e, {"input": 5}, "a string, a list of strings")
        self.refused(e, {"input": []}, "cannot be empty")
        self.refused(e, {"input": [[]]}, "cannot be empty")
        self.refused(e, {"input": [1, 10 ** 7]}, "out of vocabulary")
        self.refused(e, {"input": [5] * 200}, "maximum context length is 128 tokens")
        self.refused(e, {"input": "a", "encoding_format": "bytes"}, "'float' or 'base64'")
        self.refused(e, {"input": "a", "normalize": True}, "use `use_activation` instead")
        self.refused(e, {"input": "a", "truncate_prompt_tokens": 500}, "greater than max_model_len")
        self.refused(e, {"input": "a", "model": "other"}, "does not exist", status=404)
        self.refused("/pooling", {"input": "a", "task": "score"}, "`score` task was removed")
        self.refused("/pooling", {"input": "a", "task": "token_embed"}, "--pooler-config.task")
        self.refused("/pooling", {"input": "a", "task": "x"}, "Unsupported task: 'x'")
        self.refused("/score", {"queries": ["a", "b"], "documents": ["c"]}, "1:1, 1:N or N:N")
        self.refused("/score", {"queries": "a", "documents": []}, "At least one text_pair")
        self.refused("/score", {"queries": "a"}, "Field required")
        self.refused("/rerank", {"query": "a", "documents": [5]}, "valid string")
        for path, body, name in (
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]},
                 "Chat Completions API"), ("/v1/completions", {"prompt": "a"}, "Completions API"),
                ("/classify", {"input": "a"}, "Classification API")):
            self.refused(path, body, f"The model does not support {name}", status=404)


class Generates(unittest.TestCase):
    def test_refuses_what_pools(self):
        with Server() as s:
            for path, body, name in (
                    ("/v1/embeddings", {"input": "a"}, "Embeddings API"),
                    ("/pooling", {"input": "a"}, "Pooling API"),
                    ("/score", {"queries": "a", "documents": "b"}, "Score API"),
                    ("/rerank", {"query": "a", "documents": ["b"]}, "Rerank (Score) API")):
                answer = post(s, path, body)
                self.assertEqual(answer.status, 404)
                self.assertEqual(answer.json()["error"]["message"],
                                 f"The model does not support {name}")


class Encoders(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()

    def tearDown(self):
        self.folder.cleanup()

    def test_cross_encoder(self):
        with Server(model=encoder(self.folder.name, "bert-score")) as s:
            docs = ["the cat sat on the mat", "tar files", "how do i list files"]
            out = post(s, "/score", {"queries": "list files", "documents": docs}).json()
            scores = [d["score"] for d in out["data"]]
            self.assertTrue(all(0 < x < 1 for x in scores))
            self.assertEqual(len(set(scores)), 3)
            # [CLS] list files [SEP] tar files [SEP]
            self.assertEqual(out["usage"]["prompt_tokens"], 11 + 7 + 10)
            plain = post(s, "/score", {"queries": "list files", "documents": docs,
                                       "use_activation": False}).json()
            logits = [d["score"] for d in plain["data"]]
            self.assertTrue(close([1 / (1 + math.exp(-x)) for x in logits], scores))
            ranked = post(s, "/rerank", {"query": "list files", "documents": docs}).json()
            order = sorted(range(3), key=lambda i: -scores[i])
            self.assertEqual([r["index"] for r in ranked["results"]], order)
            cut = post(s, "/score", {"queries": "list files", "documents": docs[0],
                                     "truncate_prompt_tokens": 8}).json()
            self.assertEqual(cut["usage"]["prompt_tokens"], 8)
            self.assertEqual(post(s, "/v1/embeddings", {"input": "a"}).status, 404)

    def test_labels(self):
        with Server(model=encoder(self.folder.name, "bert-labels")) as s:
            out = post(s, "/classify", {"input": ["the cat sat", "tar"]}).json()
            for d in out["data"]:
                self.assertEqual(d["num_classes"], 3)
                self.assertAlmostEqual(sum(d["probs"]), 1, places=5)
                best = d["probs"].index(max(d["probs"]))
                self.assertEqual(d["label"], ["no", "maybe", "yes"][best])
            self.assertEqual(post(s, "/score", {"queries": "a", "documents": "b"}).status, 404)

    def test_sentence_encoder(self):
        with Server(model=encoder(self.folder.name, "bert-mean")) as s:
            models = ask(s, "GET", "/v1/models").json()
            self.assertEqual(models["data"][0]["max_model_len"], 256) # sentence_bert_config.json
            text = " ".join(["cat"] * 300)
            self.assertEqual(post(s, "/v1/embeddings", {"input": text}).status, 400)
            body = {"input": text, "truncate_prompt_tokens": -1}
            out = post(s, "/v1/embeddings", body).json()
            self.assertEqual(out["usage"]["prompt_tokens"], 256)
            # the special tokens around the text stay
            ids = [2] + [11] * 254 + [3]
            same = post(s, "/v1/embeddings", {"input": ids}).json()
            self.assertEqual(out["data"], same["data"])

    def test_token_vectors(self):
        with Server("--pooler-config", '{"task": "token_embed"}',
                    model=encoder(self.folder.name, "roberta")) as s:
            out = post(s, "/pooling", {"input": "the cat sat"}).json()
            rows = out["data"][0]["data"]
            self.assertEqual(len(rows), 5)
            self.assertEqual({len(r) for r in rows}, {32})


if __name__ == "__main__":
    main()
