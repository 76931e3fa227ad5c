/* Request-level batching, the baselines: a batch is formed when the one before has ended, and
 * nobody joins it. Prompts are computed first, then all members decode in step.
 *
 * request: memory is reserved for each member's own longest output; a member that ends leaves, so
 * rows are never wasted, only places.
 * static: a rectangle. Memory is reserved for the model's longest sequence, prompts are padded to
 * the longest of the batch, and a member that has ended goes on computing padding (a ghost) until
 * all have ended. Padding is real rows, written where the member's own tokens come later or not at
 * all, so a real backend pays for it too.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

static bool padded(const struct sched *s)
{
    return s->cfg.policy == SL_POLICY_STATIC;
}

static int reservation(const struct sched *s, const struct sequence *q)
{
    return (padded(s) ? s->max_len : q->limit) - 1; /* the last token is never computed */
}

static void form_batch(struct sched *s)
{
    for (struct sequence *q = s->waiting.head, *next; q; q = next) {
        next = q->next;
        if (!admit(s, q, reservation(s, q), 0))
            return;
    }
}

static int longest_prompt(const struct sched *s)
{
    int n = 0;
    for (const struct sequence *q = s->running.head; q; q = q->next)
        n = q->n_prompt > n ? q->n_prompt : n;
    for (int i = 0; i < s->n_ghosts; i++)
        n = s->ghost[i].n_prompt > n ? s->ghost[i].n_prompt : n;
    return n;
}

/* Rows of the prompt and of the padding after it. */
static void give_prompt(struct sched *s, struct sequence *q, int longest)
{
    int todo = q->n_computed < q->n_prompt ? q->n_prompt - q->n_computed : 0;
    int pad = padded(s) ? longest - q->n_prompt - q->n_pad : 0;
    if (todo + pad <= 0 || s->n_left <= 0)
        return;
    int n = todo < s->n_left ? todo : s->n_left;
    n = n ? cap_plogprobs(s, q, n) : 0;
    bool complete = n == todo;
    if (n > 0) {
        give(s, q, n);
    } else {
        if (!complete)
            return;
        s->entry[s->n_entries++] = q;
        q->plan_step = s->step;
        q->n_planned = 0;
    }
    pad = complete ? pad : 0;
    q->n_pad_planned = pad < s->n_left ? pad : s->n_left;
    s->n_left -= q->n_pad_planned;
}

static void give_ghosts(struct sched *s)
{
    for (int i = 0; i < s->n_ghosts && s->n_left > 0; i++) {
        struct sequence *g = &s->ghost[i];
        if (g->n_computed + g->n_pad >= s->max_len - 1)
            g->n_pad--; /* at its memory's end: the last place again */
        g->n_planned = 0;
        g->n_pad_planned = 1;
        s->n_left--;
        s->entry[s->n_entries++] = g;
    }
}

void policy_batch(struct sched *s)
{
    if (s->running.n == 0)
        form_batch(s);
    int longest = longest_prompt(s);
    for (struct sequence *q = s->running.head; q; q = q->next)
        give_prompt(s, q, longest);
    if (s->n_entries)
        return;
    grow_running(s); /* all was reserved: this only asserts it */
    give_decodes(s);
    if (s->n_entries)
        give_ghosts(s);
}

void ghosts_add(struct sched *s, struct sequence *q)
{
    struct sequence *g = &s->ghost[s->n_ghosts++];
    int n_held = g->n_steps_held; /* a step in flight may name an earlier ghost of this place */
    *g = (struct sequence){.req = &s->ghost_request,
                           .state = SEQ_RUNNING,
                           .n_prompt = q->n_prompt,
                           .n_computed = q->n_computed,
                           .row = q->row,
                           .n_steps_held = n_held,
                           .chain.node = -1};
    for (int i = 0; i < s->cfg.layout.n_groups; i++) {
        g->table[i] = q->table[i];
        q->table[i] = (struct block_table){0};
    }
    q->row = -1;
    q->n_computed = q->n_hashed = 0;
}

void ghosts_drop(struct sched *s)
{
    for (int i = 0; i < s->n_ghosts; i++) {
        blocks_release(s, &s->ghost[i]);
        row_give(s, &s->ghost[i]);
    }
    s->n_ghosts = 0;
}
