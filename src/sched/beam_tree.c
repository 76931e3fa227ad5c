/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/beam_tree.h"

#include "base/mem.h"
#include "base/status.h"

enum { CHUNK_NODES = 64 };

void beam_tree_init(struct beam_tree *t, int max_lp)
{
    size_t bytes = sizeof(struct beam_node) + (size_t)max_lp * sizeof(struct sl_logprob);
    size_t align = _Alignof(struct beam_node);
    *t = (struct beam_tree){.node_bytes = (bytes + align - 1) / align * align};
}

void beam_tree_fini(struct beam_tree *t)
{
    for (void *c = t->chunk, *before; c; c = before) {
        before = *(void **)c;
        mem_free(c);
    }
    *t = (struct beam_tree){.node_bytes = t->node_bytes};
}

static bool add_chunk(struct beam_tree *t)
{
    /* the pointer to the chunk before takes a node's place: it keeps the others aligned */
    char *c = mem_alloc(CHUNK_NODES + 1, t->node_bytes);
    if (!c)
        return false;
    *(void **)(void *)c = t->chunk;
    t->chunk = c;
    for (size_t i = CHUNK_NODES; i > 0; i--) {
        struct beam_node *n = (struct beam_node *)(void *)(c + i * t->node_bytes);
        n->parent = t->unused;
        t->unused = n;
    }
    return true;
}

struct beam_node *beam_node_make(struct beam_tree *t, struct beam_node *parent)
{
    if (!t->unused && !add_chunk(t))
        return NULL;
    struct beam_node *n = t->unused;
    t->unused = n->parent;
    t->n_live++;
    n->parent = parent;
    n->ref = 1;
    n->n_lp = 0;
    beam_node_hold(parent);
    return n;
}

void beam_node_hold(struct beam_node *n)
{
    if (n)
        n->ref++;
}

void beam_node_drop(struct beam_tree *t, struct beam_node *n)
{
    while (n) {
        SL_ASSERT(n->ref > 0);
        if (--n->ref > 0)
            return;
        struct beam_node *parent = n->parent;
        n->parent = t->unused;
        t->unused = n;
        t->n_live--;
        n = parent; /* it held that one */
    }
}
