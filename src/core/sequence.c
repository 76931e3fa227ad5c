/* SPDX-License-Identifier: Apache-2.0 */
#include "core/sequence.h"

void sequence_init(struct sequence *s, struct request *r, int index)
{
    *s = (struct sequence){
        .req = r,
        .index = index,
        .state = SEQ_NEW,
        .tokens = r->prompt,
        .n_prompt = r->n_prompt,
        .n_tokens = r->n_prompt,
        .cap_tokens = r->n_prompt,
        .row = -1,
        .chain.node = -1,
    };
}

enum sl_status request_make_seqs(struct request *r, struct sl_err *err)
{
    struct sequence *s = arena_alloc(&r->arena, (size_t)r->n_seqs, sizeof *s);
    r->seq = arena_alloc(&r->arena, (size_t)r->n_seqs, sizeof *r->seq);
    if (!s || !r->seq)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a request of %d choices", r->n_seqs);
    for (int i = 0; i < r->n_seqs; i++) {
        sequence_init(&s[i], r, i);
        r->seq[i] = &s[i];
    }
    return SL_OK;
}

void sequence_check(const struct sequence *s, int block_size)
{
    SL_ASSERT((s->row >= 0) == (s->state == SEQ_RUNNING));
    SL_ASSERT(s->n_inflight >= 0 && s->n_inflight <= s->n_steps_held);
    SL_ASSERT(s->n_computed <= s->n_tokens + s->n_inflight);
    if (s->state != SEQ_FINISHED)
        SL_ASSERT(s->n_prompt > 0 && s->n_prompt <= s->n_tokens && s->n_tokens <= s->cap_tokens);
    for (int g = 0; g < KV_GROUPS_MAX; g++) {
        const struct block_table *t = &s->table[g];
        SL_ASSERT(t->n >= 0 && t->n <= t->cap);
        SL_ASSERT(!s->swapped || s->state == SEQ_WAITING);
        SL_ASSERT(t->n == 0 ||
                  ((s->state == SEQ_RUNNING || s->swapped) && t->n * block_size >= s->n_computed));
    }
}
