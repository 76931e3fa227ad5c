#!/usr/bin/env python3
"""Writes src/text/unicode_tables.c: what the tokenizers library takes each code point for.

  python3 tools/unicode/classes.py > src/text/unicode_tables.c && clang-format -i src/text/unicode_tables.c

Asks the installed tokenizers package itself, because its parts follow different Unicode versions:
Oniguruma's classes one, Rust's regex another, and its punctuation one from 2016. Two tables:
  classes    ranges with a set of flags, for the stages that test single characters;
  stand_ins  code points that Oniguruma classes otherwise than Unicode 14 (PCRE2 10.42) does, each
             with an older character of the same category and length in UTF-8 that regular
             expressions see instead.

SPDX-License-Identifier: Apache-2.0
"""
import ctypes
import ctypes.util
import sys
import unicodedata

import tokenizers
from tokenizers import Regex
from tokenizers import normalizers as N
from tokenizers import pre_tokenizers as P

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()


def blocks(size=20000):
    for i in range(0, len(ALL), size):
        yield ALL[i:i + size]


def removed_by(normalizer):
    out = set()
    for b in blocks():
        left = set(normalizer.normalize_str("".join(b)))
        out.update(c for c in b if c not in left)
    return out


def number():
    split, out = P.Digits(individual_digits=True), set()
    for b in blocks(2000):
        pieces = {p for p, _ in split.pre_tokenize_str("a" + "a".join(b) + "a")}
        out.update(c for c in b if c in pieces and c != "a")
    return out


def punctuation():
    split, out = P.Punctuation("isolated"), set()
    for b in blocks(2000):
        pieces = {p for p, _ in split.pre_tokenize_str("a" + "a".join(b) + "a")}
        out.update(c for c in b if c in pieces and c != "a")
    return out


def word():
    split, out = P.Whitespace(), set()
    for b in blocks(2000):
        pieces = {p for p, _ in split.pre_tokenize_str(" ".join("a" + c for c in b))}
        out.update(c for c in b if "a" + c in pieces)
    return out


def nonspacing():
    strip = N.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    return {c for c in ALL if ord(c) >= 0x300 and unicodedata.category(c) in ("Mn", "Mc", "Me", "Cn")
            and strip.normalize_str(c) == ""}


def category():
    out = {}
    for name in CATEGORIES:
        for c in removed_by(N.Replace(Regex(r"\p{%s}" % name), "")):
            out[c] = name
    return out


def inert():
    """What utf8proc decomposes or reorders and the package, whose tables are older, leaves alone."""
    u = ctypes.CDLL(ctypes.util.find_library("utf8proc"))

    def by_utf8proc(form, text):
        f = getattr(u, "utf8proc_" + form)
        f.restype = ctypes.c_char_p
        return f(text.encode()).decode()

    nfkd, nfd, out = N.NFKD(), N.NFD(), set()
    for c in ALL[1:]:
        if by_utf8proc("NFKD", c) != c and nfkd.normalize_str(c) == c:
            out.add(c)
        elif by_utf8proc("NFD", "\u0345" + c) != "\u0345" + c == nfd.normalize_str("\u0345" + c):
            out.add(c)
    return out


def lower():
    """[(first, last, lower case of first)] of the letters that utf8proc 2.8 is too old for."""
    low, out = N.Lowercase(), []
    for c in ALL:
        l = low.normalize_str(c)
        if unicodedata.category(c) != "Cn" or l == c or len(l) != 1:
            continue
        cp = ord(c)
        if out and out[-1][1] == cp - 1 and ord(l) - cp == out[-1][2] - out[-1][0]:
            out[-1][1] = cp
        else:
            out.append([cp, cp, ord(l)])
    return out


def ranges(values):
    """[(first, last, value)] over the code points whose value is not 0."""
    out = []
    for c in ALL:
        v, cp = values.get(c, 0), ord(c)
        if not v:
            continue
        if out and out[-1][1] == cp - 1 and out[-1][2] == v:
            out[-1][1] = cp
        else:
            out.append([cp, cp, v])
    return out


def stand_ins():
    now = category()
    han = removed_by(N.Replace(Regex(r"\p{Han}"), ""))
    model = {}
    for c in ALL:
        old = unicodedata.category(c)
        key = (old, len(c.encode()), c in han)
        if old == now.get(c) and key not in model and (ord(c) >= 0x80 or old == "Cn"):
            model[key] = ord(c)
    out = {}
    for c in ALL:
        if now.get(c) != unicodedata.category(c):
            out[c] = model[(now[c], len(c.encode()), c in han)]
    out["\u180e"] = 0x200B  # PCRE2's \s takes it for a space; White_Space has not since 6.3
    return out


def main():
    assert unicodedata.unidata_version == "14.0.0", "PCRE2 10.42 follows Unicode 14: use such a Python"
    control = N.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    flags = {}
    for bit, chars in enumerate([number(), punctuation(),
                                 removed_by(control) - {"\t", "\n", "\r"} - {c for c in ALL if c.isspace() and ord(c) > 0x9F},
                                 removed_by(N.StripAccents()), nonspacing(), word()]):
        for c in chars:
            flags[c] = flags.get(c, 0) | 1 << bit
    print(f"""/* Written by tools/unicode/classes.py from tokenizers {tokenizers.__version__}.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/unicode_tables.h"
""")
    for c in inert():
        flags[c] = flags.get(c, 0) | 64
    table("class", "classes", ranges(flags), 8)
    table("stand_in", "stand_ins", ranges(stand_ins()), 12)
    table("stand_in", "lower_table", lower(), 12)


def table(struct, name, rows, shift):
    """The ranges, and for each 2**shift code points where their first range is."""
    print(f"const struct unicode_{struct} unicode_{name}[] = {{")
    for r in rows:
        print("    {0x%X, 0x%X, 0x%X}," % tuple(r))
    print("    {UINT32_MAX, UINT32_MAX, 0}};\n")
    pages, at = 0x110000 >> shift, 0
    print(f"const uint16_t unicode_{name}_page[{pages}] = {{")
    for page in range(pages):
        while at < len(rows) and rows[at][1] < page << shift:
            at += 1
        print(at, end="," if page < pages - 1 else "};\n\n")


if __name__ == "__main__":
    sys.exit(main())
