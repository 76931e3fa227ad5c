/* SPDX-License-Identifier: Apache-2.0 */
#include "support/crowd.h"

#include "base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

int crowd_load(struct crowd *c)
{
    int n;
    log_set_level(LOG_ERROR);
    c->golden = golden_load(&n);
    return n != CROWD_MAX;
}

void crowd_free(struct crowd *c)
{
    golden_free(&c->golden, CROWD_MAX);
}

void crowd_choose(struct crowd *c, int stride, int max_prompt)
{
    for (int i = 0; i < CROWD_MAX; i++)
        c->chosen[i] = i % stride == 0 && c->golden[i].n_prompt <= max_prompt;
}

struct sl_request *crowd_submit(const struct crowd *c, struct sl_engine *e, int i,
                                crowd_params params)
{
    struct sl_sampling_params p = params(i);
    struct sl_input in = {.tokens = c->golden[i].prompt, .n_tokens = c->golden[i].n_prompt};
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    if (sl_submit(e, &in, &p, NULL, NULL, &r, &err))
        fail_msg("%s: %s", c->golden[i].id, err.msg);
    return r;
}

static void collect(struct sl_request *r, struct answer *out)
{
    const struct sl_output *o;
    struct sl_usage usage;
    *out = (struct answer){0};
    while (sl_request_wait(r, 240000) == SL_OK && (o = sl_request_next(r))) {
        for (int i = 0; i < o->n_tokens; i++, out->n++) {
            assert_true(out->n < ANSWER_MAX);
            out->token[out->n] = o->tokens[i];
            if (!o->logprobs)
                continue;
            assert_int_equal(o->logprobs[i].n, ANSWER_TOP + 1);
            memcpy(out->lp[out->n], o->logprobs[i].entry, sizeof out->lp[0]);
        }
        assert_true(out->bytes + o->text_bytes < sizeof out->text);
        memcpy(out->text + out->bytes, o->text, o->text_bytes);
        out->bytes += o->text_bytes;
        out->finish = o->finish;
    }
    assert_true(sl_request_done(r));
    sl_request_usage(r, &usage);
    out->n_cached = usage.cached_tokens;
    sl_request_release(&r);
}

void crowd_run(const struct crowd *c, struct sl_engine *e, int width, crowd_params params,
               struct answer *out)
{
    struct sl_request *r[CROWD_MAX];
    int which[CROWD_MAX], n = 0;
    for (int i = 0; i < CROWD_MAX; i++) {
        if (c->chosen[i]) {
            r[n] = crowd_submit(c, e, i, params);
            which[n++] = i;
        }
        if (n < width && i + 1 < CROWD_MAX)
            continue;
        for (int j = 0; j < n; j++)
            collect(r[j], &out[which[j]]);
        n = 0;
    }
}

void crowd_assert_same(const struct crowd *c, const struct answer *want, const struct answer *got,
                       const char *what)
{
    for (int i = 0; i < CROWD_MAX; i++) {
        const struct answer *a = &want[i], *b = &got[i];
        int at = 0;
        if (!c->chosen[i] ||
            (a->n == b->n && a->finish == b->finish && a->bytes == b->bytes &&
             memcmp(a->token, b->token, sizeof a->token) == 0 &&
             memcmp(a->lp, b->lp, sizeof a->lp) == 0 && memcmp(a->text, b->text, a->bytes) == 0))
            continue;
        while (at < a->n && at < b->n && memcmp(a->lp[at], b->lp[at], sizeof a->lp[at]) == 0)
            at++;
        fail_msg("%s: prompt %d (%s) differs from token %d of %d on", what, i, c->golden[i].id, at,
                 a->n);
    }
}
