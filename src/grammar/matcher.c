/* SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <string.h>

struct matcher {
    struct grammar *g;
    const int32_t *stop; /* borrowed */
    int n_stop;
    int32_t *token; /* [n]: what was accepted */
    int32_t *set;   /* [n + 1]: before each, and after the last */
    int n, cap;
    uint32_t generation; /* of the grammar's cache that `set` speaks of */
};

enum sl_status matcher_create(struct matcher **out, struct grammar *g, const int32_t *stop,
                              int n_stop, struct sl_err *err)
{
    struct matcher *m = mem_zalloc(1, sizeof *m);
    if (m) {
        m->cap = 64;
        m->token = mem_alloc(64, sizeof *m->token);
        m->set = mem_alloc(65, sizeof *m->set);
    }
    if (!m || !m->token || !m->set) {
        matcher_destroy(&m);
        return SL_FAIL(err, SL_ENOMEM, "grammar: no memory to follow an output");
    }
    m->g = grammar_ref(g);
    m->stop = stop;
    m->n_stop = n_stop;
    *out = m;
    return SL_OK;
}

void matcher_destroy(struct matcher **mp)
{
    struct matcher *m = *mp;
    if (!m)
        return;
    grammar_unref(&m->g);
    mem_free(m->token);
    mem_free(m->set);
    mem_free(m);
    *mp = NULL;
}

static bool reserve(struct matcher *m, int n)
{
    if (n <= m->cap)
        return true;
    int cap = 2 * m->cap > n ? 2 * m->cap : n;
    int32_t *t = mem_realloc(m->token, (size_t)cap, sizeof *t);
    if (t)
        m->token = t;
    int32_t *s = t ? mem_realloc(m->set, (size_t)cap + 1, sizeof *s) : NULL;
    if (!s)
        return false;
    m->set = s;
    m->cap = cap;
    return true;
}

static bool is_stop(const struct matcher *m, int32_t token)
{
    for (int i = 0; i < m->n_stop; i++)
        if (m->stop[i] == token)
            return true;
    return false;
}

/* The set after one token; SET_DEAD: not allowed. */
static int step_token(struct matcher *m, int set, int32_t token)
{
    struct grammar *g = m->g;
    const struct vocab *v = g->lib->vocab;
    uint8_t buf[TOKEN_BYTES_MAX];
    size_t n = token >= 0 && token < v->n ? trie_token_bytes(v, g->lib->eos, token, buf) : 0;
    int to = n && set != SET_ENDED ? set : SET_DEAD;
    for (size_t i = 0; i < n && to != SET_DEAD; i++)
        to = machine_step(g, to, buf[i]);
    if (to != SET_DEAD || !is_stop(m, token))
        return to;
    if (set == SET_ENDED || g->set[set].accept)
        return SET_ENDED;
    /* where the vocabulary cannot spell what must come, the mask lets the output end */
    const struct mask *mask = machine_mask(g, set);
    return mask && mask->n == 0 ? SET_ENDED : SET_DEAD;
}

/* Brings the sets up to date with the cache. */
static enum sl_status refresh(struct matcher *m)
{
    if (!machine_ready(m->g))
        return SL_ENOMEM;
    if (m->generation == m->g->generation)
        return SL_OK;
    m->set[0] = m->g->start_set;
    for (int i = 0; i < m->n; i++)
        m->set[i + 1] = step_token(m, m->set[i], m->token[i]);
    if (m->g->no_memory)
        return SL_ENOMEM;
    m->generation = m->g->generation;
    machine_settle(m->g);
    return SL_OK;
}

enum sl_status matcher_clone(struct matcher **out, struct matcher *m, struct sl_err *err)
{
    struct matcher *c = NULL;
    enum sl_status st = matcher_create(&c, m->g, m->stop, m->n_stop, err);
    if (st)
        return st;
    if (!reserve(c, m->n)) {
        matcher_destroy(&c);
        return SL_FAIL(err, SL_ENOMEM, "grammar: no memory to follow an output");
    }
    c->n = m->n;
    c->generation = m->generation;
    memcpy(c->token, m->token, (size_t)m->n * sizeof *c->token);
    if (m->generation)
        memcpy(c->set, m->set, (size_t)(m->n + 1) * sizeof *c->set);
    *out = c;
    return SL_OK;
}

enum sl_status matcher_accept(struct matcher *m, int32_t token)
{
    enum sl_status st = refresh(m);
    if (st)
        return st;
    if (!reserve(m, m->n + 1))
        return SL_ENOMEM;
    int to = step_token(m, m->set[m->n], token);
    if (m->g->no_memory)
        return SL_ENOMEM;
    if (to == SET_DEAD)
        return SL_EINVAL;
    m->token[m->n++] = token;
    m->set[m->n] = to;
    return SL_OK;
}

int matcher_length(const struct matcher *m)
{
    return m->n;
}

void matcher_rollback(struct matcher *m, int n)
{
    SL_ASSERT(n >= 0 && n <= m->n);
    m->n -= n;
}

enum sl_status matcher_sync(struct matcher *m, const int32_t *tokens, int n)
{
    int same = 0, most = n < m->n ? n : m->n;
    if (most && memcmp(tokens, m->token, (size_t)most * sizeof *tokens) == 0)
        same = most;
    else
        while (same < most && tokens[same] == m->token[same])
            same++;
    matcher_rollback(m, m->n - same);
    for (int i = same; i < n; i++) {
        enum sl_status st = matcher_accept(m, tokens[i]);
        if (st)
            return st;
    }
    return SL_OK;
}

bool matcher_may_end(struct matcher *m)
{
    if (refresh(m))
        return false;
    int set = m->set[m->n];
    return set == SET_ENDED || m->g->set[set].accept;
}

bool matcher_is_done(struct matcher *m)
{
    if (refresh(m))
        return false;
    int set = m->set[m->n];
    return set == SET_ENDED || (m->g->set[set].accept && m->g->set[set].n == 0);
}

static void unpack(const struct mask *mask, uint32_t *bits, int n_words, int own_words)
{
    memset(bits, 0, (size_t)n_words * sizeof *bits);
    if (mask->bits)
        memcpy(bits, mask->bits, (size_t)own_words * sizeof *bits);
    for (int i = 0; !mask->bits && i < mask->n; i++)
        set_bit(bits, mask->ids[i]);
}

enum sl_status matcher_mask(struct matcher *m, uint32_t *bits, int n_words, int *n_allowed,
                            int32_t *forced)
{
    enum sl_status st = refresh(m);
    if (st)
        return st;
    struct grammar *g = m->g;
    int set = m->set[m->n], own = g->lib->trie.n_words, n = 0;
    int32_t one = -1;
    SL_ASSERT(n_words >= own);
    bool end = set == SET_ENDED || g->set[set].accept;
    const struct mask *mask = set == SET_ENDED ? NULL : machine_mask(g, set);
    if (!mask && set != SET_ENDED)
        return SL_ENOMEM;
    if (mask) {
        unpack(mask, bits, n_words, own);
        n = mask->n;
        one = n == 1 ? mask->ids[0] : -1;
    } else {
        memset(bits, 0, (size_t)n_words * sizeof *bits);
    }
    for (int i = 0; i < m->n_stop && (end || !mask || mask->n == 0); i++) {
        int32_t id = m->stop[i];
        if (id < 0 || id >= 32 * n_words || (bits[id >> 5] >> (id & 31) & 1))
            continue;
        set_bit(bits, id);
        one = n++ ? -1 : id;
    }
    *n_allowed = n;
    *forced = one;
    return SL_OK;
}
