#!/usr/bin/env python3
"""Differential fuzz: `sluice tokenize` and `detokenize` against the tokenizers package.

Each round makes a tokenizer, texts over random Unicode and random ids, and compares every result.
Rounds alternate between
  stages  random normalizers and pre-tokenizers in front of a word-level model whose vocabulary is
          exactly the pieces that the package gives, so that any other cut shows;
  models  BPE, Unigram and WordPiece trained on the spot, with random decoders and post-processors;
  real    the vocabularies under --shared (skipped, and said so, when it is not there).
The seed is printed; --seed repeats a run. Exit 1: something differed.

SPDX-License-Identifier: Apache-2.0
"""
import argparse
import gzip
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import unicodedata

os.environ["RUST_BACKTRACE"] = "0"
try:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers, processors, trainers
except ImportError:
    print("skip: the tokenizers package is not there")
    sys.exit(77)

WORDS = """the of and to in is that it for was with as I'll don't we've IT'S Hello WORLD naïve café
Straße İstanbul ΣΊΣΥΦΟΣ привет Ёлка 你好 世界 こんにちは カタカナ 한국어 مرحبا עברית हिन्दी ไทย 123 3.14 1,000 ½ Ⅷ ٣
foo_bar x-y-z a.b,c;d:e (paren) [brace] "quote" 'single' — … http://x.y/z?a=b&c=d user@host""".split()
SPACES = " \t\n\r\x0b\x0c\x85\u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\u180e\ufeff"
SPECIAL = ["<s>", "</s>", "<|x|>", "[MASK]", "word", "<mask>"]


def random_char(rng):
    while True:
        r = rng.random()
        if r < 0.3:
            c = rng.randrange(0x20, 0x250)
        elif r < 0.5:
            c = rng.randrange(0x250, 0x2000)
        elif r < 0.7:
            c = rng.randrange(0x2000, 0x3400)
        elif r < 0.85:
            c = rng.randrange(0x3400, 0x10000)
        else:
            c = rng.choice([rng.randrange(0x10000, 0x14000), rng.randrange(0x16000, 0x18000),
                            rng.randrange(0x1B000, 0x1FC00), rng.randrange(0x20000, 0x32000),
                            rng.randrange(0xE0000, 0xE0200)])
        ch = chr(c)
        if 0xD800 <= c < 0xE000:
            continue
        if not ALL_POINTS and unicodedata.category(ch) == "Cn":
            continue  # unassigned for this Python: libraries disagree on their class
        return ch


def random_text(rng):
    out = []
    for _ in range(rng.randrange(0, 14)):
        r = rng.random()
        if r < 0.35:
            out.append(rng.choice(WORDS))
        elif r < 0.6:
            out.append(rng.choice(SPACES if rng.random() < 0.3 else " ") * rng.choice([1, 1, 1, 2, 5]))
        elif r < 0.85:
            out.append("".join(random_char(rng) for _ in range(rng.randrange(1, 5))))
        elif r < 0.9:
            out.append(rng.choice("aA1 .!é\u0301\u0323\u200d▁Ġ") * rng.randrange(1, 40))
        elif r < 0.95:
            out.append(rng.choice(SPECIAL))
        else:
            out.append("e\u0301\u0323o\u0323\u0302 \U0001F468\u200d\U0001F469\u200d\U0001F467 ﬁ Å ㎏")
    return "".join(out)


# ---- random stages ------------------------------------------------------------------------------

PATTERNS = [r"\d+", r"\w+|[^\w\s]+", r"\s+", r"[^\s]+", r"\p{L}+|\p{N}", r"(?i:'s|'t|'ll)| ?\p{L}+",
            r"\p{Lu}\p{Ll}*", r"[\p{L}&&[^\p{Lu}]]+", r"[a-z[0-9]]+", r"\p{N}{1,3}+", r"a*", r"^.|.$",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"\s*[\r\n]+|\s+(?!\S)|\s+", r"[\p{Han}\p{Hiragana}]+", r"\h+", r"[!-/:-~]", r"(?=[A-Z])"]
BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]


def pattern(rng):
    return Regex(rng.choice(PATTERNS)) if rng.random() < 0.75 else rng.choice([" ", "e", "ll", "", "▁"])


def random_normalizer(rng, depth=0):
    pick = rng.randrange(14 if depth == 0 else 13)
    if pick < 4:
        return [normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD][pick]()
    if pick == 4:
        return normalizers.Lowercase()
    if pick == 5:
        return normalizers.Strip(left=rng.random() < 0.7, right=rng.random() < 0.7)
    if pick == 6:
        return normalizers.StripAccents()
    if pick == 7:
        return normalizers.Nmt()
    if pick == 8:
        return normalizers.BertNormalizer(clean_text=rng.random() < 0.7,
                                          handle_chinese_chars=rng.random() < 0.7,
                                          strip_accents=rng.choice([None, True, False]),
                                          lowercase=rng.random() < 0.6)
    if pick == 9:
        return normalizers.Replace(pattern(rng), rng.choice(["", " ", "▁", "xy"]))
    if pick == 10:
        return normalizers.Prepend(rng.choice(["▁", "ab"]))
    if pick == 11:
        return normalizers.Replace(" ", "▁")
    if pick == 12:
        return normalizers.ByteLevel() if rng.random() < 0.3 else normalizers.NFC()
    return normalizers.Sequence([random_normalizer(rng, 1) for _ in range(rng.randrange(1, 4))])


def random_pre(rng, depth=0):
    pick = rng.randrange(13 if depth == 0 else 11)
    if pick == 0:
        return pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.5, use_regex=rng.random() < 0.6)
    if pick == 1:
        return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=rng.choice(["always", "first", "never"]),
                                        split=rng.random() < 0.7)
    if pick == 2:
        return pre_tokenizers.Whitespace()
    if pick == 3:
        return pre_tokenizers.WhitespaceSplit()
    if pick == 4:
        return pre_tokenizers.Punctuation(rng.choice(BEHAVIORS))
    if pick == 5:
        return pre_tokenizers.Digits(individual_digits=rng.random() < 0.5)
    if pick == 6:
        return pre_tokenizers.BertPreTokenizer()
    if pick == 7:
        return pre_tokenizers.CharDelimiterSplit(rng.choice(" -e▁"))
    if pick == 8:
        return pre_tokenizers.UnicodeScripts() if rng.random() < 0.6 else pre_tokenizers.FixedLength(rng.randrange(1, 6))
    if pick < 11:
        return pre_tokenizers.Split(pattern(rng), rng.choice(BEHAVIORS), invert=rng.random() < 0.3)
    return pre_tokenizers.Sequence([random_pre(rng, 1) for _ in range(rng.randrange(1, 4))])


def random_added(rng):
    return [AddedToken(s, lstrip=rng.random() < 0.3, rstrip=rng.random() < 0.3, single_word=rng.random() < 0.3,
                       normalized=rng.random() < 0.4, special=rng.random() < 0.5)
            for s in SPECIAL if rng.random() < 0.4]


def decoder_of(tok, rng):
    """A decoder that fits the model half of the time, any otherwise."""
    D = decoders
    pick = rng.randrange(10)
    spm = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(),
                      D.Strip(content=" ", left=rng.randrange(3), right=rng.randrange(2))])
    return [D.ByteLevel(), spm, D.Metaspace(prepend_scheme=rng.choice(["always", "first", "never"])),
            D.WordPiece(prefix="##", cleanup=rng.random() < 0.5), D.BPEDecoder(suffix="</w>"),
            D.CTC(pad_token="e", word_delimiter_token="|", cleanup=rng.random() < 0.5),
            D.Sequence([D.Replace(Regex(r"[aeiou]+"), "_"), D.Fuse(), D.Replace("_t", "T")]),
            D.Sequence([D.ByteLevel(), D.Strip(content=" ", left=1, right=1)]),
            D.Sequence([D.ByteFallback(), D.Metaspace(), D.Fuse(), D.Replace(Regex(r" +"), " ")]), None][pick]


def stage_round(rng):
    tok = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    norm = random_normalizer(rng) if rng.random() < 0.6 else None
    pre = random_pre(rng) if rng.random() < 0.9 else None
    texts = [random_text(rng) for _ in range(60)]
    pieces = {}
    for text in texts:
        s = norm.normalize_str(text) if norm else text
        for piece, _ in pre.pre_tokenize_str(s) if pre else [(s, None)]:
            pieces.setdefault(piece, len(pieces) + 1)
    pieces["?"] = 0
    tok.model = models.WordLevel(pieces, unk_token="?")
    if norm:
        tok.normalizer = norm
    if pre:
        tok.pre_tokenizer = pre
    if rng.random() < 0.4:
        tok.add_tokens(random_added(rng))
    return tok, texts, f"normalizer {norm} pre-tokenizer {pre}"


def model_round(rng, corpus):
    kind = rng.randrange(5)
    extra = [random_text(rng) for _ in range(30)]
    specials = ["<unk>", "<s>", "</s>"]
    if kind == 0:
        tok = Tokenizer(models.BPE(ignore_merges=rng.random() < 0.5))
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.5)
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == 1:
        bytes_ = [f"<0x{i:02X}>" for i in range(256)] if rng.random() < 0.6 else []
        tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=rng.random() < 0.5, byte_fallback=bool(bytes_)))
        if rng.random() < 0.5:
            tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=rng.choice(["always", "first"]))
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials + bytes_, limit_alphabet=60,
                                      show_progress=False)
    elif kind == 2:
        tok = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
        tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, end_of_word_suffix="</w>",
                                      limit_alphabet=50, show_progress=False)
    elif kind == 3:
        tok = Tokenizer(models.Unigram())
        tok.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token="<unk>",
                                          show_progress=False)
    else:
        tok = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=rng.choice([5, 20, 100])))
        tok.normalizer = normalizers.BertNormalizer()
        tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    tok.train_from_iterator(corpus + extra, trainer)
    decoder = decoder_of(tok, rng)
    if decoder:
        tok.decoder = decoder
    tok.add_tokens(random_added(rng))
    post = rng.randrange(4)
    if post == 1:
        tok.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 <s>",
            special_tokens=[("<s>", tok.token_to_id("<s>")), ("</s>", tok.token_to_id("</s>"))])
    elif post == 2:
        tok.post_processor = processors.BertProcessing(("</s>", tok.token_to_id("</s>")),
                                                       ("<s>", tok.token_to_id("<s>")))
    elif post == 3:
        tok.post_processor = processors.RobertaProcessing(("</s>", tok.token_to_id("</s>")),
                                                          ("<s>", tok.token_to_id("<s>")))
    texts = [random_text(rng) for _ in range(80)]
    return tok, texts, f"{type(tok.model).__name__} kind {kind} decoder {decoder}"


REAL = ["llama3/tokenizer.json.gz", "gpt2/tokenizer.json", "qwen2/tokenizer.json.gz", "qwen2/tokenizer.qwen3.json.gz",
        "llama2/tokenizer.json", "t5/tokenizer.json", "bert/tokenizer.json"]
_real = {}


def real_round(rng, shared, name):
    if name not in _real:
        path = os.path.join(shared, "data/tokenizers", name)
        with (gzip.open(path) if name.endswith(".gz") else open(path, "rb")) as f:
            root = json.load(f)
        for token in root["added_tokens"]:  # as tokenizer_config.json has it; see decode() below
            if token["special"] and "llama2" not in name:
                token["normalized"] = False
        _real[name] = Tokenizer.from_str(json.dumps(root))
    return _real[name], [random_text(rng) for _ in range(150)], name


# ---- comparing ----------------------------------------------------------------------------------

def run_tool(command, lines):
    data = "".join(json.dumps(x, ensure_ascii=rngs.random() < 0.5) + "\n" for x in lines)
    r = subprocess.run(command, input=data.encode(), stdout=subprocess.PIPE, timeout=300)
    out = r.stdout.decode().split("\n")
    if r.returncode or len(out) != len(lines) + 1:
        raise SystemExit(f"{command}: exit {r.returncode}, {len(out) - 1} lines for {len(lines)}")
    return [json.loads(x) for x in out[:-1]]


def unless_panic(call):
    """None where the package panics: a Strip on a text shorter than it strips, lstrip into a match."""
    try:
        return call()
    except BaseException as why:
        if type(why).__name__ != "PanicException":
            raise
        return None


def odd_added(tok):
    """The package decodes an added token that has a normalized form to that form, and does not skip
    it when it is special; sluice gives it as it is written, as releases before 0.22 did."""
    if not tok.normalizer:
        return set()
    return {i for i, t in tok.get_added_tokens_decoder().items()
            if t.normalized and tok.normalizer.normalize_str(t.content) != t.content}


def compare(tool, tok, texts, label, rng, folder):
    tok.no_truncation()
    tok.no_padding()
    tok.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))  # the file is what counts
    lines, want = [], []
    for text in texts:
        special = rng.random() < 0.5
        ids = unless_panic(lambda: tok.encode(text, add_special_tokens=special).ids)
        if ids is not None:
            lines.append({"text": text, "add_special_tokens": special})
            want.append({"ids": ids})
    got = run_tool(tool + ["tokenize", folder], lines)
    n = tok.get_vocab_size()
    odd = odd_added(tok)
    ids_lines, ids_want = [], []
    for i in range(len(want)):
        ids = want[i]["ids"] if i % 2 else [rng.randrange(n) for _ in range(rng.randrange(1, 12))]
        ids = [x for x in ids if x not in odd]
        skip = rng.random() < 0.5
        kept = [x for x in ids if not skip or x not in tok.get_added_tokens_decoder() or
                not tok.get_added_tokens_decoder()[x].special]
        if not kept:
            continue  # BPEDecoder panics on nothing
        text = unless_panic(lambda: tok.decode(ids, skip_special_tokens=skip))
        if text is not None:
            ids_lines.append({"ids": ids, "skip_special_tokens": skip})
            ids_want.append({"text": text})
    got += run_tool(tool + ["detokenize", folder], ids_lines)
    bad = 0
    for line, w, g in zip(lines + ids_lines, want + ids_want, got):
        if w != g:
            bad += 1
            if bad <= 3:
                print(f"DIFFERS {label}\n  in   {json.dumps(line)}\n  want {json.dumps(w)}\n  got  {json.dumps(g)}")
                if "text" in line:
                    print("  tokens", tok.encode(line["text"], add_special_tokens=line["add_special_tokens"]).tokens)
    return len(got), bad


def main():
    global ALL_POINTS, rngs
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--sluice", default=os.environ.get("SLUICE_BIN", "build/sluice"), help="the binary")
    ap.add_argument("--shared", default=os.environ.get("SLUICE_SHARED", "../shared"))
    ap.add_argument("--rounds", type=int, default=30)
    ap.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    ap.add_argument("--only", choices=["stages", "models", "real"])
    ap.add_argument("--all", action="store_true", help="unassigned code points too")
    args = ap.parse_args()
    ALL_POINTS = args.all
    print(f"seed {args.seed}")
    tool = shlex.split(args.sluice)
    corpus = [" ".join(random.Random(7).choices(WORDS, k=4000))]
    have_real = os.path.isdir(os.path.join(args.shared, "data/tokenizers"))
    if not have_real:
        print(f"skipped: the real vocabularies ({args.shared} is not there)")
    kinds = [args.only] if args.only else ["stages", "models"] + (["real"] if have_real else [])
    total = wrong = 0
    for i in range(args.rounds):
        rngs = rng = random.Random(args.seed * 1000003 + i)
        kind = kinds[i % len(kinds)]
        if kind == "stages":
            tok, texts, label = stage_round(rng)
        elif kind == "models":
            tok, texts, label = model_round(rng, corpus)
        else:
            tok, texts, label = real_round(rng, args.shared, REAL[i // len(kinds) % len(REAL)])
        with tempfile.TemporaryDirectory() as folder:
            n, bad = compare(tool, tok, texts, f"round {i}: {label}", rng, folder)
        total += n
        wrong += bad
    print(f"{total - wrong} passed, {wrong} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
