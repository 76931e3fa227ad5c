"""Embeddings, pooling, classification, scores and rankings over HTTP: a decoder that pools (with the
openai and cohere packages where they are there), the same as a reranker, and tiny encoders with a
classification head.

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

    def test_messages(self):
        turns = [{"role": "user", "content": "How do I list files?"}]
        for more in ({}, {"add_generation_prompt": True}, {"add_special_tokens": True}):
            wanted = {"add_generation_prompt": False, **more}
            ids = post(self.server, "/tokenize", {"messages": turns, **wanted}).json()["tokens"]
            out = self.embed(messages=turns, **more)
            self.assertEqual(out["usage"]["prompt_tokens"], len(ids))
            same = self.embed(input=ids)["data"]
            self.assertEqual(out["data"], same)
            out = post(self.server, "/pooling", {"messages": turns, **more}).json()
            self.assertEqual(out["data"][0]["data"], same[0]["embedding"])
        parts = [{"role": "user", "content": [{"type": "text", "text": "How do I list files?"}]}]
        self.assertEqual(self.embed(messages=parts)["data"], self.embed(messages=turns)["data"])
        cut = self.embed(messages=turns, truncate_prompt_tokens=4)
        self.assertEqual(cut["usage"]["prompt_tokens"], 4)
        e = "/v1/embeddings"
        self.refused(e, {"messages": "x"}, "'messages'")
        self.refused(e, {"messages": [{"content": "x"}]}, "'role'", "Field required")
        self.refused(e, {"messages": turns, "chat_template": "x"}, "untrusted chat template")
        self.refused(e, {"messages": turns, "add_generation_prompt": True,
                         "continue_final_message": True}, "Cannot set both")

    def test_limits_of_pairs(self):
        text = "How do I list all the files of a folder by size?"
        n = len(post(self.server, "/tokenize", {"prompt": text}).json()["tokens"])
        plain = len(post(self.server, "/tokenize", {"prompt": text, "add_special_tokens": False})
                    .json()["tokens"])
        extra = n - plain
        for path, query in (("/score", "queries"), ("/rerank", "query")):
            for more, want in (({}, 2 * n), ({"max_tokens_per_doc": 4}, n + 4 + extra),
                               ({"max_tokens_per_query": 3}, n + 3 + extra),
                               ({"max_tokens_per_doc": 100}, 2 * n)):
                out = post(self.server, path, {query: text, "documents": [text], **more}).json()
                self.assertEqual(out["usage"]["prompt_tokens"], want)
            body = {query: text, "documents": [text]}
            self.refused(path, {**body, "max_tokens_per_doc": 128},
                         "max_tokens_per_doc (128) must be less than max_model_len (128).")
            self.refused(path, {**body, "max_tokens_per_query": -1},
                         "max_tokens_per_query must be a non-negative integer")

    def test_cohere_client(self):
        try:
            import cohere
        except ImportError:
            self.skipTest("no cohere package")
        docs = ["A cat sat", "tar -tf archive.tar", "The cat slept"]
        want = post(self.server, "/v2/rerank", {"query": "A cat", "documents": docs}).json()
        for client in (cohere.Client(base_url=self.server.base, api_key="key"),
                       cohere.ClientV2(base_url=self.server.base, api_key="key")):
            out = client.rerank(model=want["model"], query="A cat",
                                documents=docs, top_n=2)
            self.assertEqual([r.index for r in out.results],
                             [r["index"] for r in want["results"]][:2])
            self.assertTrue(close([r.relevance_score for r in out.results],
                                  [r["relevance_score"] for r in want["results"]][:2]))

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


class Matryoshka(unittest.TestCase):
    def test_dimensions(self):
        overrides = json.dumps({"matryoshka_dimensions": [16, 128]})
        with Server("--runner", "pooling", "--hf-overrides", overrides) as s:
            def vector(**more):
                answer = post(s, "/v1/embeddings", {"input": "A cat", **more})
                self.assertEqual(answer.status, 200, answer.body)
                return answer.json()["data"][0]["embedding"]

            whole = vector()
            for n in (16, 128):
                length = math.sqrt(sum(x * x for x in whole[:n]))
                cut = vector(dimensions=n)
                self.assertTrue(close(cut, [x / length for x in whole[:n]]))
                raw = base64.b64decode(vector(dimensions=n, encoding_format="base64"))
                self.assertTrue(close(struct.unpack(f"<{n}f", raw), cut, 1e-8))
            answer = post(s, "/v1/embeddings", {"input": "A cat", "dimensions": 17})
            self.assertEqual(answer.status, 400)
            self.assertIn("only supports Matryoshka dimensions [16, 128], got 17",
                          answer.json()["error"]["message"])


# As Qwen3-Reranker's: what it asks, and the two words that answer.
PAIR_TEMPLATE = """<Instruct>: {{ instruction | default("Is the text about the query?") }}
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}
Answer:"""
DOCUMENTS = ["The cat sat on the mat.", "Use tar to pack files.", "Cats sleep a lot."]


def rendered(query, document, instruction="Is the text about the query?"):
    return (f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}\nAnswer:")


def reranker(**more):
    return json.dumps({"architectures": ["LlamaForSequenceClassification"],
                       "classifier_from_token": ["no", "yes"], **more})


class Reranker(unittest.TestCase):
    """A decoder that was trained to answer yes or no: its score is what its logits of the two words
    say, as the generating model gives them."""

    @classmethod
    def setUpClass(cls):
        """odds[prompt]: logit of yes less logit of no"""
        cls.odds, cls.count = {}, {}
        with Server("--dtype", "float32") as s:
            ids = [post(s, "/tokenize", {"prompt": w, "add_special_tokens": False}).json()["tokens"]
                   for w in ("no", "yes")]
            assert [len(i) for i in ids] == [1, 1], ids
            no, yes = (i[0] for i in ids)
            prompts = [f(q, d) for q in ("cats", "packing") for d in DOCUMENTS
                       for f in (rendered, lambda a, b: a + b,
                                 lambda a, b: rendered(a, b, "Be strict."))]
            for prompt in prompts:
                out = post(s, "/v1/completions", {
                    "prompt": prompt, "max_tokens": 1, "temperature": 0,
                    "logprobs": 0, "logprob_token_ids": [no, yes],
                    "return_tokens_as_token_ids": True}).json()
                top = out["choices"][0]["logprobs"]["top_logprobs"][0]
                cls.odds[prompt] = top[f"token_id:{yes}"] - top[f"token_id:{no}"]
                cls.count[prompt] = out["usage"]["prompt_tokens"]

    def check(self, server, prompts, **body):
        out = post(server, "/score", {"queries": "cats", "documents": DOCUMENTS, **body})
        self.assertEqual(out.status, 200, out.body)
        want = [1 / (1 + math.exp(-self.odds[p])) for p in prompts]
        self.assertTrue(close([d["score"] for d in out.json()["data"]], want, 2e-5),
                        (out.body, want))
        self.assertEqual(out.json()["usage"]["prompt_tokens"], sum(self.count[p] for p in prompts))

    def test_with_a_template(self):
        with Server("--dtype", "float32", "--chat-template", PAIR_TEMPLATE, "--hf-overrides",
                    reranker(is_original_qwen3_reranker=True)) as s:
            usual = [rendered("cats", d) for d in DOCUMENTS]
            strict = [rendered("cats", d, "Be strict.") for d in DOCUMENTS]
            self.check(s, usual)
            self.check(s, strict, instruction="Be strict.")
            self.check(s, strict, chat_template_kwargs={"instruction": "Be strict."})
            self.check(s, strict, instruction="No.",
                       chat_template_kwargs={"instruction": "Be strict."})
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                out = post(s, path, {"query": "packing", "documents": DOCUMENTS}).json()
                odds = [self.odds[rendered("packing", d)] for d in DOCUMENTS]
                order = sorted(range(3), key=lambda i: -odds[i])
                self.assertEqual([r["index"] for r in out["results"]], order)
            plain = post(s, "/score", {"queries": "cats", "documents": DOCUMENTS,
                                       "use_activation": False}).json()
            self.assertTrue(close([d["score"] for d in plain["data"]],
                                  [self.odds[p] for p in usual], 2e-4))
            answer = post(s, "/score", {"queries": "a", "documents": "b",
                                        "chat_template_kwargs": {"tools": []}})
            self.assertEqual(answer.status, 400)
            self.assertIn("reserved keys", answer.json()["error"]["message"])

    def test_without_a_template(self):
        with Server("--dtype", "float32", "--hf-overrides",
                    reranker(method="from_2_way_softmax")) as s:
            self.check(s, ["cats" + d for d in DOCUMENTS])

    def test_a_class_for_each_token(self):
        with Server("--dtype", "float32", "--hf-overrides",
                    reranker(method="no_post_processing")) as s:
            prompt = rendered("cats", DOCUMENTS[0])
            out = post(s, "/classify", {"input": prompt}).json()["data"][0]
            self.assertEqual(out["num_classes"], 2)
            self.assertTrue(close(out["probs"],
                                  [1 / (1 + math.exp(x * self.odds[prompt])) for x in (1, -1)],
                                  2e-5))

    def test_refusals(self):
        for overrides, says in (
                (reranker(method="other"), "method 'other' of classifier_from_token is not known"),
                (reranker(), "method '' of classifier_from_token is not known"),
                (reranker(classifier_from_token=["no"], method="from_2_way_softmax"),
                 "must list two tokens"),
                (reranker(classifier_from_token=["no", "nosuchword"],
                          is_original_qwen3_reranker=True), "has no token 'nosuchword'")):
            with self.assertRaises(RuntimeError) as e:
                Server("--hf-overrides", overrides)
            self.assertIn(says, str(e.exception))


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
            much = post(s, "/score", {"queries": "cat " * 10000, "documents": ["mat"] * 1000,
                                      "truncate_prompt_tokens": 8})  # 40 MB of queries to read
            self.assertEqual(much.status, 400)
            self.assertIn("send fewer documents", much.json()["error"]["message"])
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
