/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/choice.h"

#include "engine/vec.h"

#include <math.h>

static enum sl_status no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "no memory for a request's output");
}

void choice_init(struct choice *c, int index)
{
    *c = (struct choice){.index = index, .shown_as = index};
    strbuf_init(&c->text, 0);
    strbuf_init(&c->out, 0);
    strbuf_init(&c->logged, 0);
}

void choice_fini(struct choice *c)
{
    detok_destroy(&c->detok);
    strbuf_fini(&c->text);
    strbuf_fini(&c->out);
    strbuf_fini(&c->logged);
    mem_free(c->tokens);
    mem_free(c->text_end);
    mem_free(c->lp);
    mem_free(c->lp_start);
    mem_free(c->lists);
}

static size_t total_text(const struct choice *c)
{
    return c->base + c->text.len;
}

/* The token that stopped it is not text, unless asked for. */
static bool is_text(const struct choice_rules *r, const struct event *ev)
{
    bool stopped = ev->finish == SL_STOP;
    return r->tokenizer && r->p->detokenize && (!stopped || r->p->include_stop_str_in_output);
}

static enum sl_status append_text(struct choice *c, const struct choice_rules *r, int32_t token,
                                  struct sl_err *err)
{
    if (!c->detok) {
        enum sl_status st = detok_create(&c->detok, r->tokenizer, r->p->skip_special_tokens,
                                         r->p->spaces_between_special_tokens, err);
        if (!st && r->n_context)
            st = detok_prime(c->detok, r->context, (size_t)r->n_context);
        if (st)
            return st;
    }
    enum sl_status st = detok_push(c->detok, token, &c->text);
    if (st)
        return SL_FAIL(err, st, "token %d cannot be turned into text", (int)token);
    return c->text.failed ? no_memory(err) : SL_OK;
}

static enum sl_status append_token(struct choice *c, const struct event *ev,
                                   const struct sl_logprob *lp, struct sl_err *err)
{
    size_t n = c->n_new, n_lp = (size_t)ev->n_lp;
    if (!vec_room(&c->tokens, &c->cap_tokens, n + 1, sizeof *c->tokens) ||
        !vec_room(&c->text_end, &c->cap_end, n + 1, sizeof *c->text_end) ||
        !vec_room(&c->lp_start, &c->cap_start, n + 2, sizeof *c->lp_start) ||
        !vec_room(&c->lp, &c->cap_lp, c->n_lp + n_lp, sizeof *c->lp))
        return no_memory(err);
    if (n_lp) {
        memcpy(c->lp + c->n_lp, lp, n_lp * sizeof *lp);
        c->sum += (double)lp->logprob;
        c->n_ranked++;
    }
    c->lp_start[n] = (int)c->n_lp;
    c->n_lp += n_lp;
    c->lp_start[n + 1] = (int)c->n_lp;
    c->tokens[n] = ev->token;
    c->n_new++;
    c->n_tokens++;
    if (!c->first_ns)
        c->first_ns = ev->t_ns;
    c->last_ns = ev->t_ns;
    return SL_OK;
}

/* Looks for a stop string in what the last token has added, from `before` on. */
static void look_for_stop(struct choice *c, const struct choice_rules *r, size_t before)
{
    size_t start, end;
    if (!r->stop.n || c->n_tokens <= r->p->min_tokens || before == total_text(c))
        return;
    int hit =
        stop_strings_find(&r->stop, c->text.data, c->text.len, before - c->base, &start, &end);
    if (hit < 0)
        return;
    size_t cut = r->p->include_stop_str_in_output ? end : start;
    SL_ASSERT(c->base + cut >= c->sent); /* that is what holding back is for */
    c->text.len = cut;
    c->text.data[cut] = 0;
    c->finish = SL_STOP;
    c->stop_kind = SL_STOP_STRING;
    c->stop_string = r->p->stop[hit];
}

static enum sl_status flush_text(struct choice *c, struct sl_err *err)
{
    if (!c->detok)
        return SL_OK;
    enum sl_status st = detok_finish(c->detok, &c->text);
    return st || c->text.failed ? no_memory(err) : SL_OK;
}

enum sl_status choice_take(struct choice *c, const struct choice_rules *r, const struct event *ev,
                           const struct sl_logprob *lp, struct sl_err *err)
{
    enum sl_status st;
    if (c->finish != SL_RUNNING)
        return SL_OK; /* computed before the engine heard of the stop string */
    if (ev->has_token) {
        size_t before = total_text(c);
        if ((st = append_token(c, ev, lp, err)))
            return st;
        if (is_text(r, ev) && (st = append_text(c, r, ev->token, err)))
            return st;
        look_for_stop(c, r, before);
        c->text_end[c->n_new - 1] = total_text(c);
    }
    if (ev->finish == SL_RUNNING || c->finish != SL_RUNNING)
        return SL_OK;
    c->stop_kind = (enum sl_stop_kind)ev->stop_kind;
    c->stop_token = ev->stop_token;
    return choice_end(c, (enum sl_finish)ev->finish, err);
}

enum sl_status choice_end(struct choice *c, enum sl_finish why, struct sl_err *err)
{
    if (c->finish != SL_RUNNING)
        return SL_OK;
    c->finish = why;
    enum sl_status st = flush_text(c, err);
    if (!st && c->n_new)
        c->text_end[c->n_new - 1] = total_text(c);
    return st;
}

bool choice_ready(const struct choice *c, const struct choice_rules *r)
{
    if (c->ended)
        return false;
    if (c->finish != SL_RUNNING)
        return true;
    return c->n_new > 0 && (!c->started || c->n_new >= (size_t)r->stream_interval);
}

/* Text that can no longer be part of a stop string. */
static size_t ready_text(const struct choice *c, const struct choice_rules *r)
{
    size_t end = total_text(c);
    if (c->finish != SL_RUNNING || r->p->include_stop_str_in_output || !c->text.len)
        return end;
    end -= stop_strings_tail(c->text.data, c->text.len, r->stop.hold_chars);
    return end > c->sent ? end : c->sent;
}

/* What was given goes, but for what a stop string's beginning may need. */
static void drop_sent(struct choice *c, const struct choice_rules *r)
{
    size_t keep = r->stop.max_bytes ? r->stop.max_bytes - 1 : 0;
    size_t done = c->sent - c->base;
    size_t drop = c->text.len > keep ? c->text.len - keep : 0;
    drop = drop < done ? drop : done;
    if (drop) {
        strbuf_drop_front(&c->text, drop);
        c->base += drop;
    }
}

static bool output_logprobs(struct choice *c)
{
    if (!vec_room(&c->lists, &c->cap_lists, c->n_new, sizeof *c->lists))
        return false;
    for (size_t i = 0; i < c->n_new; i++)
        c->lists[i] = (struct sl_token_logprobs){.entry = c->lp + c->lp_start[i],
                                                 .n = c->lp_start[i + 1] - c->lp_start[i]};
    return true;
}

enum sl_status choice_output(struct choice *c, const struct choice_rules *r, struct sl_output *out,
                             struct sl_err *err)
{
    size_t end = ready_text(c, r);
    bool want_lp = r->show_logprobs;
    strbuf_clear(&c->out);
    if (end > c->sent)
        strbuf_add(&c->out, c->text.data + (c->sent - c->base), end - c->sent);
    if (c->out.failed || (want_lp && c->n_new && !output_logprobs(c)))
        return no_memory(err);
    if (r->max_log_bytes && c->logged.len < r->max_log_bytes) {
        size_t room = r->max_log_bytes - c->logged.len;
        strbuf_add(&c->logged, c->out.data ? c->out.data : "",
                   c->out.len < room ? c->out.len : room);
    }
    c->sent = end;
    drop_sent(c, r);
    for (size_t i = c->n_new; i-- > 0 && c->finish != SL_RUNNING;)
        c->text_end[i] = c->text_end[i] < end ? c->text_end[i] : end;
    *out = (struct sl_output){
        .index = c->shown_as,
        .text = c->out.len ? c->out.data : "",
        .text_bytes = c->out.len,
        .tokens = c->tokens,
        .n_tokens = (int)c->n_new,
        .logprobs = want_lp ? c->lists : NULL,
        .token_text_end = c->text_end,
        .finish = c->finish,
        .stop_kind = c->stop_kind,
        .stop_token = c->stop_token,
        .stop_string = c->stop_string,
        .cumulative_logprob = c->n_tokens && c->n_ranked == c->n_tokens ? c->sum : NAN,
    };
    out->score = out->cumulative_logprob;
    if (r->beams && c->n_tokens)
        out->score /= pow(c->n_tokens, (double)r->p->length_penalty);
    c->started = true;
    c->ended = c->finish != SL_RUNNING;
    return SL_OK;
}

void choice_taken(struct choice *c)
{
    c->n_new = c->n_lp = 0;
}
