/* SPDX-License-Identifier: Apache-2.0 */
#include "http/call.h"

#include "base/clock.h"
#include "base/log.h"
#include "http/conn.h"
#include "http/json_out.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    LARGE_BODY = 128 << 10, /* such prompts have a worker of their own */
    HOLD_ABOVE = 64 << 10,  /* bytes waiting in the socket's buffer at which events are held back */
    RETRY_MS = 5            /* offline: the engine's queue is full */
};

/* ---- on a worker */

static void call_wake(void *ctx)
{
    struct call *c = ctx;
    loop_post(c->loop, c);
}

/* The engine's queue is full, and a batch that is in no hurry tries again after a pause. */
static bool try_again(const struct call *c, enum sl_status st)
{
    struct sl_server *s = c->loop->srv;
    if (st != SL_EAGAIN || !s->offline || atomic_load(&s->killed))
        return false;
    struct timespec pause = {.tv_nsec = RETRY_MS * 1000000L};
    nanosleep(&pause, NULL);
    return true;
}

static bool accepted(struct call *c, enum sl_status st, struct sl_err *err)
{
    if (st == SL_OK)
        return true;
    if (st == SL_EAGAIN)
        return oai_fail(&c->error, 429, NULL, NULL,
                        "The server's queue of requests is full (--max-num-queued-reqs). Try again "
                        "later.");
    err->code = st;
    if (!err->msg[0])
        snprintf(err->msg, sizeof err->msg, "The request was not accepted");
    return oai_fail_err(&c->error, err);
}

static bool submit_one(struct call *c, int i, const struct sl_input *in,
                       const struct sl_sampling_params *params)
{
    struct sl_err err = {0};
    enum sl_status st;
    do
        st = sl_submit(c->loop->srv->engine, in, params, call_wake, c, &c->reqs[i], &err);
    while (try_again(c, st));
    return accepted(c, st, &err);
}

static bool submit(struct call *c)
{
    struct oai_request *r = &c->r;
    c->reqs = mem_zalloc((size_t)r->n_prompts, sizeof *c->reqs);
    if (!c->reqs)
        return oai_fail(&c->error, 500, NULL, NULL, "There is not enough memory for the request");
    struct sl_sampling_params params = r->params;
    if (!r->stream && !params.n_stop && params.stream_interval < 16)
        params.stream_interval = 16; /* nobody reads in between: fewer wake-ups */
    for (int i = 0; i < r->n_prompts; i++) {
        char id[300];
        snprintf(id, sizeof id, r->api == OAI_CHAT ? "chatcmpl-%s" : "cmpl-%s-%d", c->id, i);
        struct sl_input in = {.id = id,
                              .tokens = r->prompts[i].tokens,
                              .n_tokens = r->prompts[i].n_tokens,
                              .priority = r->priority,
                              .cache_salt = r->cache_salt,
                              .arrival_ns = c->arrival_ns};
        params.max_tokens = r->prompts[i].max_tokens;
        if (atomic_load(&c->cancelled) || !submit_one(c, i, &in, &params))
            return false;
        c->n_reqs++;
    }
    return true;
}

static bool pool_one(struct call *c, int i)
{
    const struct oai_request *r = &c->r;
    const struct oai_prompt *p = &r->prompts[i];
    struct sl_pooling_params params;
    struct sl_err err = {0};
    enum sl_status st;
    char id[300];
    snprintf(id, sizeof id, "%s-%d", c->id, i);
    const struct sl_input in = {.id = id,
                                .tokens = p->tokens,
                                .n_tokens = p->n_tokens,
                                .priority = r->priority,
                                .cache_salt = r->cache_salt,
                                .arrival_ns = c->arrival_ns};
    oai_pool_params(r, &c->loop->srv->env, &params);
    params.n_first = p->n_first;
    do
        st = sl_pool(c->loop->srv->engine, &in, &params, call_wake, c, &c->reqs[i], &err);
    while (try_again(c, st));
    return accepted(c, st, &err);
}

static bool submit_pooled(struct call *c)
{
    c->reqs = mem_zalloc((size_t)c->r.n_prompts, sizeof *c->reqs);
    if (!c->reqs)
        return oai_fail(&c->error, 500, NULL, NULL, "There is not enough memory for the request");
    for (int i = 0; i < c->r.n_prompts; i++) {
        if (atomic_load(&c->cancelled) || !pool_one(c, i))
            return false;
        c->n_reqs++;
    }
    return true;
}

static void reply_tokens(struct call *c, const struct oai_env *env)
{
    const struct oai_prompt *p = &c->r.prompts[0];
    struct strbuf *b = &c->reply;
    strbuf_addf(b, "{\"count\":%d,\"max_model_len\":%d,\"tokens\":", p->n_tokens,
                env->info.max_model_len);
    put_token_list(b, p->tokens, p->n_tokens);
    strbuf_adds(b, ",\"token_strs\":");
    if (!c->r.return_token_strs)
        strbuf_adds(b, "null");
    for (int i = 0; c->r.return_token_strs && i < p->n_tokens; i++) {
        const char *name = sl_text_token(env->text, p->tokens[i]);
        strbuf_addc(b, i ? ',' : '[');
        json_put_lossy(b, name ? name : "", name ? strlen(name) : 0);
    }
    strbuf_adds(b, c->r.return_token_strs ? (p->n_tokens ? "]}" : "[]}") : "}");
}

static bool reply_text(struct call *c, const struct oai_env *env)
{
    char *text;
    size_t bytes;
    struct sl_err err = {0};
    if (!env->text)
        return oai_fail(&c->error, 400, NULL, NULL,
                        "Unable to get tokenizer because `skip_tokenizer_init=True`");
    for (int i = 0; i < c->r.n_tokens; i++)
        if (c->r.tokens[i] < 0 || c->r.tokens[i] >= env->info.vocab_size)
            return oai_fail(&c->error, 400, NULL, "tokens", "Token id %d is out of vocabulary",
                            c->r.tokens[i]);
    if (sl_text_decode(env->text, c->r.tokens, (size_t)c->r.n_tokens, false, &text, &bytes, &err))
        return oai_fail_err(&c->error, &err);
    strbuf_adds(&c->reply, "{\"prompt\":");
    json_put_lossy(&c->reply, text, bytes);
    strbuf_addc(&c->reply, '}');
    sl_free(text);
    return true;
}

/* The body's memory, and its share of the server's budget, go as soon as it is parsed. */
static void drop_body(struct call *c)
{
    mem_free(c->body);
    c->body = NULL;
    atomic_fetch_sub(&c->loop->srv->body_bytes, c->charged);
    c->charged = 0;
}

static bool prepare(struct call *c)
{
    struct sl_server *s = c->loop->srv;
    bool ok = oai_served(c->api, &s->env, &c->error) &&
              oai_parse(&c->r, c->api, &s->env, c->body, c->bytes, &c->error);
    drop_body(c);
    if (!ok)
        return false;
    if (c->r.request_id && !c->has_id)
        snprintf(c->id, sizeof c->id, "%s", c->r.request_id);
    if (c->api == OAI_DETOKENIZE)
        return reply_text(c, &s->env);
    if (c->api & OAI_POOLS) /* the body stays: its answer may show documents of it */
        return oai_pool_prompts(&c->r, &s->env, &c->error) && submit_pooled(c);
    if (!oai_prompts(&c->r, &s->env, &c->error))
        return false;
    if (c->api == OAI_TOKENIZE) {
        reply_tokens(c, &s->env);
        return true;
    }
    c->answering = true; /* answer_fini accepts a half-built one */
    if (!answer_init(&c->a, &s->env, &c->r, s->pieces, c->id, s->fingerprint))
        return oai_fail(&c->error, 500, NULL, NULL, "There is not enough memory for the request");
    if (atomic_load(&c->cancelled) || !submit(c))
        return false;
    oai_drop_body(&c->r);
    return true;
}

static void prepare_job(struct job *job)
{
    struct call *c = (struct call *)job;
    struct loop *l = c->loop;
    if (!atomic_load(&c->cancelled))
        prepare(c);
    atomic_store(&c->prepared, true);
    loop_post(l, c); /* a wake of the engine may have come before, and was ignored */
}

/* ---- life */

static void link_call(struct call *c)
{
    if (c->linked)
        return;
    c->linked = true;
    c->next = c->loop->calls;
    if (c->next)
        c->next->prev = c;
    c->loop->calls = c;
}

static void unlink_call(struct call *c)
{
    if (!c->linked)
        return;
    c->linked = false;
    if (c->prev)
        c->prev->next = c->next;
    else
        c->loop->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    c->prev = c->next = NULL;
}

bool call_start(struct loop *l, enum oai_api api, char *body, size_t bytes, size_t charged,
                const char *id, struct conn *conn, sl_openai_done_fn done, void *ctx)
{
    struct call *c = mem_zalloc(1, sizeof *c);
    if (!c) {
        mem_free(body);
        atomic_fetch_sub(&l->srv->body_bytes, charged);
        return false;
    }
    c->job.run = prepare_job;
    c->loop = l;
    c->api = api;
    c->body = body;
    c->bytes = bytes;
    c->charged = charged;
    c->arrival_ns = clock_mono_ns();
    c->conn = conn;
    c->done = done;
    c->done_ctx = ctx;
    c->has_id = id && *id;
    if (c->has_id)
        snprintf(c->id, sizeof c->id, "%s", id);
    else
        oai_random_id(c->id);
    strbuf_init(&c->reply, 0);
    if (conn) {
        conn->call = c;
        link_call(c); /* an offline call comes from another thread: the loop links it later */
    }
    if (api & (OAI_GENERATE | OAI_POOLS))
        atomic_fetch_add(&l->srv->n_load, 1);
    workers_post(l->srv->workers, &c->job, bytes > LARGE_BODY);
    return true;
}

static void destroy(struct call *c)
{
    for (int i = 0; i < c->n_reqs; i++)
        sl_request_release(&c->reqs[i]);
    mem_free(c->reqs);
    if (c->api & (OAI_GENERATE | OAI_POOLS))
        atomic_fetch_sub(&c->loop->srv->n_load, 1);
    if (c->done)
        server_busy(c->loop->srv, -1);
    answer_fini(&c->a);
    oai_fini(&c->r);
    strbuf_fini(&c->reply);
    mem_free(c->body);
    atomic_fetch_sub(&c->loop->srv->body_bytes, c->charged);
    mem_free(c);
}

/* Gives up the engine's requests now, the memory as soon as nothing points at it. */
static void call_end(struct call *c)
{
    if (c->conn)
        c->conn->call = NULL;
    c->conn = NULL;
    atomic_store(&c->cancelled, true);
    for (int i = 0; i < c->n_reqs; i++)
        sl_request_release(&c->reqs[i]); /* no wake comes after this */
    if (atomic_load(&c->queued))
        return; /* call_run() finds it cancelled */
    unlink_call(c);
    destroy(c);
}

void call_client_left(struct call *c)
{
    c->conn = NULL;
    atomic_store(&c->cancelled, true);
    if (atomic_load(&c->prepared))
        call_end(c);
}

void call_free_all(struct loop *l)
{
    for (struct call *c = l->run_head; c; c = c->next_ready)
        link_call(c);
    l->run_head = NULL;
    l->run_tail = &l->run_head;
    while (l->calls) {
        struct call *c = l->calls;
        static const char sorry[] = "{\"error\":{\"message\":\"The server was stopped.\",\"type\":"
                                    "\"Service Unavailable\",\"param\":null,\"code\":503}}";
        if (c->done && !atomic_load(&c->cancelled))
            c->done(c->done_ctx, 503, sorry, sizeof sorry - 1);
        unlink_call(c);
        destroy(c);
    }
}

void call_abort(struct call *c)
{
    if (atomic_load(&c->prepared))
        for (int i = 0; i < c->n_reqs; i++)
            if (c->reqs[i]) /* released: it has ended, and only waits for its last turn */
                sl_request_abort(c->reqs[i]); /* its choices finish, and the answer with them */
}

/* ---- on the loop: from outputs to bytes */

static void finish_body(struct call *c, int status, struct strbuf *body)
{
    struct conn *conn = c->conn;
    sl_openai_done_fn done = c->done;
    if (done) {
        done(c->done_ctx, body->failed ? 500 : status, body->data ? body->data : "", body->len);
        call_end(c);
        return;
    }
    call_end(c); /* first: the reply may free the connection, and with it forget the call */
    if (conn)
        conn_reply(conn, status, "application/json", body);
}

static void finish_error(struct call *c, const struct oai_error *e)
{
    struct oai_error copy = *e;
    if (c->streaming) {
        struct strbuf *b = &c->loop->scratch;
        struct conn *conn = c->conn;
        strbuf_clear(b);
        answer_error_event(&copy, b);
        call_end(c);
        conn_stream_write(conn, b->data, b->len);
        conn_stream_end(conn);
        return;
    }
    struct strbuf body;
    strbuf_init(&body, 0);
    oai_error_json(&body, &copy);
    finish_body(c, copy.status, &body);
    strbuf_fini(&body);
}

static bool slow_client(const struct call *c)
{
    return conn_pending(c->conn) >= HOLD_ABOVE;
}

static size_t held_bytes(const struct call *c)
{
    size_t n = conn_pending(c->conn);
    for (int i = 0; i < c->a.n_choices; i++)
        n += oai_choice_pending(&c->a.choices[i]);
    return n;
}

static void send_events(struct call *c, struct strbuf *b)
{
    if (!b->len)
        return;
    if (!c->streaming) {
        c->streaming = true;
        conn_stream_start(c->conn);
    }
    conn_stream_write(c->conn, b->data, b->len);
    strbuf_clear(b);
}

static void finish_stream(struct call *c, struct strbuf *b)
{
    struct conn *conn = c->conn;
    for (int i = 0; i < c->a.n_choices; i++)
        answer_event(&c->a, i, c->reqs, b);
    answer_end(&c->a, c->reqs, b);
    send_events(c, b);
    call_end(c);
    conn_stream_end(conn);
}

/* Takes what is ready. False: the call has ended. */
static bool pump(struct call *c)
{
    struct strbuf *b = &c->loop->scratch;
    bool stream = c->r.stream && c->conn;
    strbuf_clear(b);
    for (int i = 0; c->flush && i < c->a.n_choices; i++)
        answer_event(&c->a, i, c->reqs, b);
    c->flush = false;
    for (int i = 0; i < c->n_reqs; i++) {
        const struct sl_output *out;
        while ((out = sl_request_next(c->reqs[i]))) {
            if (!answer_take(&c->a, i, c->reqs[i], out)) {
                if (stream)
                    send_events(c, b);
                finish_error(c, &c->a.error);
                return false;
            }
            int choice = i * c->r.params.n + out->index;
            if (stream && !c->held)
                answer_event(&c->a, choice, c->reqs, b);
            if (stream && b->len >= HOLD_ABOVE)
                send_events(c, b);
            if (stream)
                c->held = slow_client(c);
        }
    }
    if (stream) {
        send_events(c, b);
        if (c->held && held_bytes(c) > c->loop->srv->cfg.max_output_buffer) {
            log_info("Request %s aborted: its client reads too slowly.", c->a.id.data);
            conn_kill(c->conn); /* and with it the call */
            return false;
        }
    }
    return true;
}

static void answer_whole(struct call *c)
{
    struct strbuf body;
    strbuf_init(&body, 0);
    answer_body(&c->a, c->reqs, &body);
    finish_body(c, 200, &body);
    strbuf_fini(&body);
}

/* A call whose requests give vectors or scores. */
static void run_pooled(struct call *c)
{
    struct oai_error e = {0};
    for (int i = 0; i < c->n_reqs; i++) {
        const struct sl_output *out;
        while ((out = sl_request_next(c->reqs[i]))) {
            c->n_pooled += out->finish != SL_RUNNING;
            if (out->finish == SL_ERROR && out->error && out->error->code == SL_EDEVICE)
                oai_fail_err(&e, out->error);
            else if (out->finish == SL_ABORT)
                oai_fail(&e, 503, NULL, NULL, "The server is shutting down.");
            else if (out->finish != SL_STOP)
                oai_fail(&e, 500, NULL, NULL, "Internal server error");
        }
    }
    if (e.status) {
        finish_error(c, &e);
        return;
    }
    if (c->n_pooled < c->n_reqs)
        return;
    struct strbuf body;
    strbuf_init(&body, 0);
    oai_pool_body(&c->r, &c->loop->srv->env, c->reqs, c->id, clock_wall_s(), &body);
    finish_body(c, 200, &body);
    strbuf_fini(&body);
}

void call_run(struct call *c)
{
    if (!atomic_load(&c->prepared))
        return; /* the worker posts it again */
    if (atomic_load(&c->cancelled)) {
        call_end(c);
        return;
    }
    if (c->error.status) {
        finish_error(c, &c->error);
        return;
    }
    if (c->api & OAI_POOLS) {
        link_call(c);
        if (c->loop->killed)
            call_abort(c);
        run_pooled(c);
        return;
    }
    if (!c->answering) {
        struct strbuf body = c->reply;
        strbuf_init(&c->reply, 0);
        finish_body(c, 200, &body);
        strbuf_fini(&body);
        return;
    }
    link_call(c);
    if (c->loop->killed)
        call_abort(c); /* it was being prepared when the others were told */
    if (!pump(c) || c->a.n_finished < c->a.n_choices)
        return;
    if (c->r.stream && c->conn)
        finish_stream(c, &c->loop->scratch);
    else
        answer_whole(c);
}

void call_drained(struct call *c)
{
    if (!c->held)
        return;
    c->held = false;
    c->flush = true;
    loop_requeue(c->loop, c);
}
