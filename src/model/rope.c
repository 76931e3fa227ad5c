/* rope.c - rotary frequencies with their scalings, as transformers computes them (in float32).
 *
 * A scaling changes the frequencies once, so that kernels only ever see a list of them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, the rest in between. */
static void scale_llama3(const struct config *c, double factor, float *freq, int n)
{
    double low = config_real(c, "low_freq_factor", 1), high = config_real(c, "high_freq_factor", 4);
    double old = config_int_required(c, "original_max_position_embeddings", 1, 1 << 28);
    if (!(low > 0 && high > low)) {
        config_fail(c, "rope scaling llama3: low_freq_factor and high_freq_factor do not fit");
        return;
    }
    for (int i = 0; i < n; i++) {
        double wavelength = 2 * PI / freq[i];
        double keep = (old / wavelength - low) / (high - low);
        if (wavelength > old / low)
            freq[i] = (float)(freq[i] / factor);
        else if (wavelength >= old / high)
            freq[i] = (float)((1 - keep) * freq[i] / factor + keep * freq[i]);
    }
}

static void scale(struct model_spec *s, const struct config *c, const char *type, float *freq,
                  int n)
{
    if (!strcmp(type, "default"))
        return;
    double factor = config_real(c, "factor", 0);
    if (!(factor >= 1 && factor <= 1e6)) {
        config_fail(c, "rope scaling '%.32s': factor must be 1 or more", type);
        return;
    }
    if (!strcmp(type, "llama3")) {
        scale_llama3(c, factor, freq, n);
    } else if (!strcmp(type, "linear")) {
        for (int i = 0; i < n; i++)
            freq[i] = (float)(freq[i] / factor);
        double longest = s->max_position * factor; /* what the frequencies were made for */
        s->max_position = longest < INT32_MAX ? (int)longest : INT32_MAX;
    } else {
        config_fail(c, "rope type '%.32s' is not known; known are: default, linear, llama3", type);
    }
}

void config_rope(struct model_spec *s, const struct config *c, int rot_dims)
{
    /* transformers 5 has one object; 4 has rope_theta beside an object for the scaling. */
    const json_t *o = json_object_get(c->root, "rope_parameters");
    if (!json_is_object(o))
        o = json_object_get(c->root, "rope_scaling");
    struct config in = *c;
    in.root = o;
    const char *type = "default";
    if (json_is_object(o))
        type = config_string(&in, "rope_type", config_string(&in, "type", "default"));
    else if (o && !json_is_null(o))
        config_fail(c, "rope_scaling must be an object");
    double theta = config_real(c, "rope_theta", 10000);
    if (json_is_object(o))
        theta = config_real(&in, "rope_theta", theta);
    if (!(theta > 0 && theta < 1e30))
        config_fail(c, "rope_theta is %g", theta);
    if (rot_dims < 2 || rot_dims % 2 || rot_dims > s->head_dim)
        config_fail(c, "%d rotary dimensions do not fit a head of %d", rot_dims, s->head_dim);
    if (*c->st)
        return;
    SL_ASSERT(s->n_ropes < ROPES_MAX);
    float *freq = mem_alloc((size_t)rot_dims / 2, sizeof *freq);
    if (!freq) {
        *c->st = SL_FAIL(c->err, SL_ENOMEM, "%s: no memory for rotary frequencies", c->path);
        return;
    }
    for (int i = 0; i < rot_dims / 2; i++)
        freq[i] = (float)(1 / (double)(float)pow(theta, (double)(float)(2 * i) / rot_dims));
    s->rope[s->n_ropes++] = (struct rope_spec){.inv_freq = freq, .rot_dims = rot_dims, .mscale = 1};
    scale(s, &in, type, freq, rot_dims / 2);
}
