/* rope.c - rotary frequencies with their scalings, as transformers computes them (in float32).
 *
 * A scaling changes the frequencies once, so that kernels only ever see a list of them. Where
 * transformers looks at a sequence's length (dynamic, longrope), the model's maximum length decides
 * here: a token's bits must not depend on how long its sequence will be.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

/* A scaling at work: the encoding it changes, and where its keys are. */
struct scaling {
    struct model_spec *s;
    const struct config *top; /* config.json */
    const struct config *c;   /* the object with the scaling's keys */
    struct rope_spec *r;
    int n; /* frequencies */
    double theta;
};

static double positive(const struct scaling *x, const char *key, double fallback)
{
    double v = config_real(x->c, key, fallback);
    if (!(v > 0 && v <= 1e6))
        config_fail(x->c, "rope scaling: %s is %g; it must be above 0", key, v);
    return v;
}

static double factor(const struct scaling *x, double fallback)
{
    double v = config_real(x->c, "factor", fallback);
    if (!(v >= 1 && v <= 1e6))
        config_fail(x->c, "rope scaling: factor must be 1 or more");
    return v;
}

static int original_positions(const struct scaling *x)
{
    static const char key[] = "original_max_position_embeddings";
    return config_int(x->c, key, config_int(x->top, key, x->s->max_position, 1, 1 << 28), 1,
                      1 << 28);
}

static void stretch_context(struct model_spec *s, double times, int from)
{
    double longest = from * times;
    s->max_position = longest < (1 << 28) ? (int)longest : 1 << 28;
}

static void scale_linear(const struct scaling *x)
{
    double f = factor(x, 0);
    if (*x->c->st)
        return;
    for (int i = 0; i < x->n; i++)
        x->r->inv_freq[i] = (float)(x->r->inv_freq[i] / f);
    stretch_context(x->s, f, x->s->max_position);
}

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, the rest in between. */
static void scale_llama3(const struct scaling *x)
{
    double f = factor(x, 0), old = original_positions(x);
    double low = positive(x, "low_freq_factor", 1), high = positive(x, "high_freq_factor", 4);
    if (high <= low)
        config_fail(x->c, "rope scaling llama3: low_freq_factor and high_freq_factor do not fit");
    if (*x->c->st)
        return;
    for (int i = 0; i < x->n; i++) {
        double freq = x->r->inv_freq[i], wavelength = 2 * PI / freq;
        double keep = (old / wavelength - low) / (high - low);
        if (wavelength > old / low)
            x->r->inv_freq[i] = (float)(freq / f);
        else if (wavelength >= old / high)
            x->r->inv_freq[i] = (float)((1 - keep) * freq / f + keep * freq);
    }
}

/* The (fractional) index of the frequency that turns `rotations` times over `positions`. */
static double yarn_dim(const struct scaling *x, double rotations, double positions)
{
    return 2 * x->n * log(positions / (rotations * 2 * PI)) / (2 * log(x->theta));
}

static double yarn_mscale(double f, double mscale)
{
    return f <= 1 ? 1 : 0.1 * mscale * log(f) + 1;
}

/* YaRN: frequencies below `low` are kept, above `high` divided by factor, between them mixed; the
 * attention is sharpened through cos and sin. */
static void scale_yarn(const struct scaling *x)
{
    int old = original_positions(x);
    double f = factor(x, (double)x->s->max_position / old);
    double low = yarn_dim(x, positive(x, "beta_fast", 32), old);
    double high = yarn_dim(x, positive(x, "beta_slow", 1), old);
    double mscale = config_real(x->c, "mscale", 0), all = config_real(x->c, "mscale_all_dim", 0);
    double sharpen =
        mscale != 0 && all != 0 ? yarn_mscale(f, mscale) / yarn_mscale(f, all) : yarn_mscale(f, 1);
    sharpen = config_real(x->c, "attention_factor", sharpen);
    if (config_bool(x->c, "truncate", true)) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, 2 * x->n - 1);
    if (*x->c->st)
        return;
    if (low == high)
        high += 0.001;
    for (int i = 0; i < x->n; i++) {
        double mixed = fmin(fmax((i - low) / (high - low), 0), 1), freq = x->r->inv_freq[i];
        x->r->inv_freq[i] = (float)(freq / f * mixed + freq * (1 - mixed));
    }
    x->r->mscale = (float)sharpen;
    stretch_context(x->s, f, old);
}

/* Phi-3: a factor for each frequency, one list for models longer than the original context. */
static void scale_longrope(const struct scaling *x)
{
    int old = original_positions(x);
    double stretch = config_real(x->c, "factor", (double)x->s->max_position / old);
    const char *key = x->s->max_position > old ? "long_factor" : "short_factor";
    const json_t *list = json_object_get(x->c->root, key);
    double sharpen = stretch <= 1 ? 1 : sqrt(1 + log(stretch) / log(old));
    sharpen = config_real(x->c, "attention_factor", sharpen);
    if (json_array_size(list) != (size_t)x->n) {
        config_fail(x->c, "rope scaling longrope: %s must list %d numbers", key, x->n);
        return;
    }
    for (int i = 0; i < x->n; i++) {
        double by = json_number_value(json_array_get(list, (size_t)i));
        if (!(by > 0 && by <= 1e6)) {
            config_fail(x->c, "rope scaling longrope: entry %d of %s is not above 0", i, key);
            return;
        }
        x->r->inv_freq[i] = (float)(x->r->inv_freq[i] / by);
    }
    if (!isfinite(sharpen))
        config_fail(x->c, "rope scaling longrope: attention_factor is not finite");
    x->r->mscale = (float)sharpen;
}

/* Up to the trained length, dynamic scaling changes nothing; longer sequences are not offered. */
static void scale_nothing(const struct scaling *x)
{
    (void)x;
}

static const struct {
    const char *type;
    void (*scale)(const struct scaling *x);
} scalings[] = {{"default", scale_nothing}, {"linear", scale_linear}, {"dynamic", scale_nothing},
                {"llama3", scale_llama3},   {"yarn", scale_yarn},     {"longrope", scale_longrope},
                {"su", scale_longrope} /* longrope's first name */};

static void scale(const struct scaling *x, const char *type)
{
    for (size_t i = 0; i < sizeof scalings / sizeof *scalings; i++)
        if (!strcmp(type, scalings[i].type)) {
            scalings[i].scale(x);
            return;
        }
    config_fail(x->c,
                "rope type '%.32s' is not known; known are: default, linear, dynamic, llama3, yarn,"
                " longrope",
                type);
}

void config_rope_object(struct model_spec *s, const struct config *c, int rot_dims,
                        const json_t *object, double theta)
{
    struct config in = *c;
    const char *type = "default";
    in.root = object;
    if (json_is_object(object)) {
        type = config_string(&in, "rope_type", config_string(&in, "type", "default"));
        theta = config_real(&in, "rope_theta", theta);
    } else if (object && !json_is_null(object)) {
        config_fail(c, "rope_scaling must be an object");
    }
    if (!(theta > 0 && theta < 1e30))
        config_fail(c, "rope_theta is %g", theta);
    if (rot_dims < 2 || rot_dims % 2 || rot_dims > s->head_dim)
        config_fail(c, "%d rotary dimensions do not fit a head of %d", rot_dims, s->head_dim);
    if (*c->st)
        return;
    SL_ASSERT(s->n_ropes < ROPES_MAX);
    int n = rot_dims / 2;
    float *freq = mem_alloc((size_t)n, sizeof *freq);
    if (!freq) {
        *c->st = SL_FAIL(c->err, SL_ENOMEM, "%s: no memory for rotary frequencies", c->path);
        return;
    }
    for (int i = 0; i < n; i++)
        freq[i] = (float)(1 / (double)(float)pow(theta, (double)(float)(2 * i) / rot_dims));
    struct rope_spec *r = &s->rope[s->n_ropes++];
    *r = (struct rope_spec){.inv_freq = freq, .rot_dims = rot_dims, .mscale = 1};
    struct scaling x = {.s = s, .top = c, .c = &in, .r = r, .n = n, .theta = theta};
    scale(&x, type);
}

void config_rope(struct model_spec *s, const struct config *c, int rot_dims)
{
    /* transformers 5 has one object; 4 has rope_theta beside an object for the scaling. */
    const json_t *o = json_object_get(c->root, "rope_parameters");
    if (!json_is_object(o))
        o = json_object_get(c->root, "rope_scaling");
    config_rope_object(s, c, rot_dims, o, config_real(c, "rope_theta", 10000));
}
