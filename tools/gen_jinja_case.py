#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/text/jinja_case.inc: what Python's str knows about letters and utf8proc does not.

Run from the repository's root. Python's own tables are the facts; the C side takes simple case
pairs and categories from utf8proc and everything else from the output of this script."""
import sys
import unicodedata


def ranges(pred):
    out = []
    for cp in range(0x110000):
        if 0xD800 <= cp < 0xE000 or not pred(chr(cp)):
            continue
        if out and out[-1][1] == cp - 1:
            out[-1][1] = cp
        else:
            out.append([cp, cp])
    return out


def emit_ranges(name, items, out):
    out.append(f"static const uint32_t {name}[][2] = {{")
    line = "   "
    for a, b in items:
        piece = f" {{0x{a:x}, 0x{b:x}}},"
        if len(line) + len(piece) > 99:
            out.append(line)
            line = "   "
        line += piece
    out.append(line)
    out.append("};")


def simple(cp, how):
    """The single-character mapping, or None when Python maps to several."""
    s = getattr(chr(cp), how)()
    return s if len(s) != 1 else None


def main():
    out = ["/* Made by tools/gen_jinja_case.py from Python's tables, Unicode "
           + unicodedata.unidata_version + ". */"]
    maps = []
    for index, how in enumerate(("lower", "upper", "title", "casefold")):
        for cp in range(0x110000):
            if 0xD800 <= cp < 0xE000:
                continue
            many = simple(cp, how)
            if many is not None:
                maps.append((index, cp, [ord(c) for c in many]))
            elif how == "casefold" and chr(cp).casefold() != chr(cp).lower():
                maps.append((index, cp, [ord(chr(cp).casefold())]))
    out.append("static const struct {")
    out.append("    uint8_t how;")
    out.append("    uint32_t from;")
    out.append("    uint32_t to[3];")
    out.append("} case_maps[] = {")
    for index, cp, to in maps:
        to = to + [0] * (3 - len(to))
        out.append(f"    {{{index}, 0x{cp:x}, {{{', '.join(f'0x{c:x}' for c in to)}}}}},")
    out.append("};")
    other_lower = ranges(lambda c: c.islower() and unicodedata.category(c) != "Ll")
    other_upper = ranges(lambda c: c.isupper() and unicodedata.category(c) != "Lu")
    emit_ranges("other_lower", other_lower, out)
    emit_ranges("other_upper", other_upper, out)
    emit_ranges("numeric_letters",
                ranges(lambda c: c.isnumeric() and unicodedata.category(c)[0] != "N"), out)
    not_numeric = ranges(lambda c: unicodedata.category(c)[0] == "N" and not c.isnumeric())
    assert not not_numeric, not_numeric
    with open("src/text/jinja_case.inc", "w", encoding="ascii") as f:
        f.write("\n".join(out) + "\n")


if __name__ == "__main__":
    sys.exit(main())
