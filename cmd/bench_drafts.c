/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_drafts.h"

#include <stdlib.h>
#include <string.h>

/* A line of the exposition format, behind "vllm:spec_decode_num_". */
static void parse_line(struct bench_drafts *d, const char *line, size_t n)
{
    static const char per_pos[] = "accepted_tokens_per_pos_total{", label[] = "position=\"";
    const char *end = memchr(line, '}', n), *value = end ? end + 1 : memchr(line, ' ', n);
    if (!value)
        return;
    double v = strtod(value, NULL);
    if (strncmp(line, per_pos, sizeof per_pos - 1) == 0) {
        const char *at = strstr(line, label);
        long pos = at && at < value ? strtol(at + sizeof label - 1, NULL, 10) : -1;
        if (pos < 0 || pos >= SL_DRAFT_MAX)
            return;
        d->accepted_at[pos] += v;
        d->n_places = pos >= d->n_places ? (int)pos + 1 : d->n_places;
    } else if (strncmp(line, "drafts_total", 12) == 0) {
        d->drafts += v;
    } else if (strncmp(line, "draft_tokens_total", 18) == 0) {
        d->tokens += v;
    } else if (strncmp(line, "accepted_tokens_total", 21) == 0) {
        d->accepted += v;
    }
}

void bench_drafts_parse(struct bench_drafts *d, const char *metrics)
{
    static const char prefix[] = "vllm:spec_decode_num_";
    *d = (struct bench_drafts){0};
    for (const char *line = metrics; *line;) {
        size_t n = strcspn(line, "\n");
        if (strncmp(line, prefix, sizeof prefix - 1) == 0)
            parse_line(d, line + sizeof prefix - 1, n - (sizeof prefix - 1));
        line += n + (line[n] == '\n');
    }
}

void bench_drafts_of(struct bench_drafts *d, const struct sl_engine *e)
{
    struct sl_draft_stats s;
    sl_engine_draft_stats(e, &s);
    *d = (struct bench_drafts){.n_places = s.n_places,
                               .drafts = (double)s.n_drafts,
                               .tokens = (double)s.n_draft_tokens,
                               .accepted = (double)s.n_accepted};
    for (int i = 0; i < s.n_places; i++)
        d->accepted_at[i] = (double)s.n_accepted_at[i];
}

void bench_drafts_since(struct bench_drafts *d, const struct bench_drafts *before)
{
    d->drafts -= before->drafts;
    d->tokens -= before->tokens;
    d->accepted -= before->accepted;
    for (int i = 0; i < d->n_places; i++)
        d->accepted_at[i] -= before->accepted_at[i];
}

double bench_drafts_rate(const struct bench_drafts *d)
{
    return d->tokens > 0 ? 100 * d->accepted / d->tokens : 0;
}

double bench_drafts_length(const struct bench_drafts *d)
{
    return d->drafts > 0 ? 1 + d->accepted / d->drafts : 1;
}

double bench_drafts_at(const struct bench_drafts *d, int pos)
{
    return d->drafts > 0 ? d->accepted_at[pos] / d->drafts : 0;
}

void bench_drafts_put(const struct bench_drafts *d, json_t *result)
{
    json_t *places = json_array();
    for (int i = 0; i < d->n_places; i++)
        json_array_append_new(places, json_real(bench_drafts_at(d, i)));
    json_object_set_new(result, "spec_decode_acceptance_rate", json_real(bench_drafts_rate(d)));
    json_object_set_new(result, "spec_decode_acceptance_length", json_real(bench_drafts_length(d)));
    json_object_set_new(result, "spec_decode_num_drafts", json_integer((json_int_t)d->drafts));
    json_object_set_new(result, "spec_decode_draft_tokens", json_integer((json_int_t)d->tokens));
    json_object_set_new(result, "spec_decode_accepted_tokens",
                        json_integer((json_int_t)d->accepted));
    json_object_set_new(result, "spec_decode_per_position_acceptance_rates", places);
}
