/* SPDX-License-Identifier: Apache-2.0 */
#include "http/pieces.h"

#include "base/mem.h"

#include <stdatomic.h>
#include <string.h>

struct pieces {
    const struct sl_text *text;
    int n;
    /* each is set once, by whoever needs it first: published with release, read with acquire */
    _Atomic(struct piece *) slot[];
};

static const struct piece nothing;

enum sl_status pieces_create(struct pieces **out, const struct sl_text *text, int vocab_size,
                             struct sl_err *err)
{
    int n = text && vocab_size > 0 ? vocab_size : 0;
    struct pieces *p = mem_zalloc(1, sizeof *p + (size_t)n * sizeof p->slot[0]);
    if (!p)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for the texts of %d tokens", n);
    p->text = text;
    p->n = n;
    *out = p;
    return SL_OK;
}

void pieces_destroy(struct pieces **pp)
{
    struct pieces *p = *pp;
    *pp = NULL;
    if (!p)
        return;
    for (int i = 0; i < p->n; i++)
        mem_free(atomic_load(&p->slot[i]));
    mem_free(p);
}

static struct piece *decode(const struct sl_text *t, int32_t token)
{
    char *text;
    size_t bytes;
    if (sl_text_decode(t, &token, 1, false, &text, &bytes, NULL))
        return NULL;
    struct piece *made = mem_zalloc(1, sizeof *made + bytes + 1);
    if (made) {
        memcpy(made->text, text, bytes);
        made->bytes = (uint32_t)bytes;
        for (size_t i = 0; i < bytes; i++)
            made->chars += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    sl_free(text);
    return made;
}

const struct piece *pieces_get(struct pieces *p, int32_t token)
{
    if (token < 0 || token >= p->n)
        return &nothing;
    struct piece *have = atomic_load_explicit(&p->slot[token], memory_order_acquire);
    if (have)
        return have;
    struct piece *made = decode(p->text, token);
    if (!made)
        return &nothing;
    if (atomic_compare_exchange_strong_explicit(&p->slot[token], &have, made, memory_order_acq_rel,
                                                memory_order_acquire))
        return made;
    mem_free(made); /* another thread was first */
    return have;
}

const char *pieces_bytes(struct pieces *p, int32_t token, size_t *n)
{
    static const char replaced[] = "\xef\xbf\xbd";
    const struct piece *piece = pieces_get(p, token);
    const unsigned char *raw = NULL;
    if (piece->bytes && memmem(piece->text, piece->bytes, replaced, sizeof replaced - 1))
        raw = sl_text_token_bytes(p->text, token, n);
    if (raw)
        return (const char *)raw;
    *n = piece->bytes;
    return piece->text;
}
