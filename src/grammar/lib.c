/* Compiled grammars, kept while they are used and for a while after.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <stdio.h>
#include <string.h>

enum {
    CACHED_MAX = 256,            /* grammars */
    CACHED_BYTES_MAX = 64 << 20, /* of tables */
    WARM_NODES = 3 * 1000000     /* trie nodes visited ahead of the first token */
};

/* ---- the string leaf, warm from the start ------------------------------------------------------
 */

/* Makes the splits that a first token would wait for. Optional: what is missing is made later. */
static void warm_leaf(struct grammar_lib *lib, struct leaf *l, long *left)
{
    for (int s = 0; s<l->n && * left> 0; s++) {
        bool mine = false;
        if (!l->wide[s])
            continue;
        struct split *k = leaf_split(lib, l, s, 0, &mine);
        if (k)
            *left -= 2000 + 3L * (k->n_inside + k->n_exit);
        if (mine)
            mem_free(k);
    }
}

static void warm(struct grammar *g)
{
    long left = WARM_NODES;
    for (int i = 0; i < g->n_rules; i++)
        if (g->rule[i].leaf)
            warm_leaf(g->lib, g->rule[i].leaf, &left);
}

/* ---- the cache ------------------------------------------------------------------------------- */

static void unlink_grammar(struct grammar_lib *lib, struct grammar *g)
{
    *(g->newer ? &g->newer->older : &lib->newest) = g->older;
    *(g->older ? &g->older->newer : &lib->oldest) = g->newer;
    g->newer = g->older = NULL;
    lib->n_cached--;
    lib->cached_bytes -= g->bytes;
}

static void link_newest(struct grammar_lib *lib, struct grammar *g)
{
    g->older = lib->newest;
    g->newer = NULL;
    *(lib->newest ? &lib->newest->newer : &lib->oldest) = g;
    lib->newest = g;
    lib->n_cached++;
    lib->cached_bytes += g->bytes;
}

static struct grammar *find(struct grammar_lib *lib, const char *key, size_t n, uint64_t hash)
{
    for (struct grammar *g = lib->newest; g; g = g->older)
        if (g->key_hash == hash && g->n_key == n && memcmp(g->key, key, n) == 0) {
            unlink_grammar(lib, g);
            link_newest(lib, g);
            return grammar_ref(g);
        }
    return NULL;
}

/* The cache's share of those that fall out, to be given back outside the lock. */
static struct grammar *evict(struct grammar_lib *lib)
{
    struct grammar *out = NULL;
    while (lib->oldest && (lib->n_cached > CACHED_MAX || lib->cached_bytes > CACHED_BYTES_MAX)) {
        struct grammar *g = lib->oldest;
        unlink_grammar(lib, g);
        g->older = out;
        out = g;
    }
    return out;
}

static void give_back(struct grammar *list)
{
    while (list) {
        struct grammar *next = list->older;
        grammar_unref(&list);
        list = next;
    }
}

static char *make_key(const struct grammar_spec *s, size_t *n)
{
    char head[64];
    int k = snprintf(head, sizeof head, "%d %d %d %zu ", (int)s->kind, s->compact, s->closed,
                     s->whitespace ? strlen(s->whitespace) + 1 : 0);
    size_t n_space = s->whitespace ? strlen(s->whitespace) : 0;
    *n = (size_t)k + n_space + s->n_text;
    char *key = mem_alloc(*n + 1, 1);
    if (!key)
        return NULL;
    memcpy(key, head, (size_t)k);
    if (n_space)
        memcpy(key + k, s->whitespace, n_space);
    if (s->n_text)
        memcpy(key + k + n_space, s->text, s->n_text);
    return key;
}

static uint64_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)p[i]) * 1099511628211u;
    return h;
}

static const char *field_of(const struct grammar_spec *s)
{
    static const char *const usual[] = {
        "structured_outputs.json",    "structured_outputs.json_object",
        "structured_outputs.regex",   "structured_outputs.choice",
        "structured_outputs.grammar", "structured_outputs.structural_tag"};
    return s->field ? s->field : usual[s->kind];
}

static enum sl_status compile(struct grammar_lib *lib, const struct grammar_spec *spec,
                              struct grammar **out, struct sl_err *err)
{
    struct work w;
    struct rules r;
    work_init(&w, field_of(spec), err);
    rules_init(&r, &w);
    grammar_front(&r, lib, spec);
    enum sl_status st = w.st ? w.st : grammar_build(lib, &r, out);
    work_fini(&w);
    if (!st)
        warm(*out);
    return st;
}

enum sl_status grammar_compile(struct grammar_lib *lib, const struct grammar_spec *spec,
                               struct grammar **out, struct sl_err *err)
{
    size_t n;
    char *key = make_key(spec, &n);
    if (!key)
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory to compile it", field_of(spec));
    uint64_t hash = hash_bytes(key, n);
    mutex_lock(&lib->lock);
    struct grammar *g = find(lib, key, n, hash);
    lib->n_hits += g != NULL;
    mutex_unlock(&lib->lock);
    if (g) {
        mem_free(key);
        *out = g;
        return SL_OK;
    }
    enum sl_status st = compile(lib, spec, &g, err);
    if (st) {
        mem_free(key);
        return st;
    }
    mutex_lock(&lib->lock);
    struct grammar *first = find(lib, key, n, hash), *old = NULL; /* two compiled the same */
    lib->n_compiled++;
    if (!first) {
        g->key = key;
        g->n_key = n;
        g->key_hash = hash;
        link_newest(lib, grammar_ref(g));
        old = evict(lib);
    }
    mutex_unlock(&lib->lock);
    give_back(old);
    if (first) {
        mem_free(key);
        grammar_unref(&g);
        g = first;
    }
    *out = g;
    return SL_OK;
}

struct grammar *grammar_ref(struct grammar *g)
{
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

void grammar_unref(struct grammar **gp)
{
    struct grammar *g = *gp;
    *gp = NULL;
    if (g && atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) == 1)
        grammar_free(g);
}

void grammar_get_stats(const struct grammar *g, struct grammar_stats *out)
{
    *out = (struct grammar_stats){
        .n_rules = g->n_rules,
        .n_states = g->n_states,
        .bytes = g->bytes,
        .n_stacks = g->n_stack,
        .n_sets = g->n_set,
        .cache_bytes = (size_t)g->cap_stack * sizeof *g->stack +
                       (size_t)g->cap_set * sizeof *g->set +
                       (size_t)g->cap_member * sizeof *g->member +
                       (size_t)g->cap_trans * sizeof *g->trans + g->mask_bytes,
    };
}

/* ---- the library ----------------------------------------------------------------------------- */

enum sl_status grammar_lib_create(struct grammar_lib **out, const struct vocab *vocab, int32_t eos,
                                  struct sl_err *err)
{
    struct grammar_lib *lib = mem_zalloc(1, sizeof *lib);
    if (!lib)
        return SL_FAIL(err, SL_ENOMEM, "grammar: no memory");
    lib->vocab = vocab;
    lib->eos = eos;
    mutex_init(&lib->lock, LOCK_GRAMMAR);
    enum sl_status st = trie_init(&lib->trie, vocab, eos, err);
    if (st)
        grammar_lib_destroy(&lib);
    else
        *out = lib;
    return st;
}

void grammar_lib_destroy(struct grammar_lib **libp)
{
    struct grammar_lib *lib = *libp;
    if (!lib)
        return;
    struct grammar *g = lib->newest;
    lib->newest = lib->oldest = NULL;
    give_back(g);
    trie_fini(&lib->trie);
    mutex_fini(&lib->lock);
    mem_free(lib);
    *libp = NULL;
}

void grammar_lib_stats(struct grammar_lib *lib, struct grammar_lib_stats *out)
{
    mutex_lock(&lib->lock);
    *out =
        (struct grammar_lib_stats){lib->n_compiled, lib->n_hits, lib->n_cached, lib->cached_bytes};
    mutex_unlock(&lib->lock);
}
