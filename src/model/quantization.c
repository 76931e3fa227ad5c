/* quantization.c - what config.json says of a checkpoint whose weights are quantized already.
 *
 * Supported is e4m3 with a scale for each matrix or each output, and activations in 8 bits, as
 * vLLM's "fp8", compressed-tensors and ModelOpt write it. Activations are given a scale by row
 * always: it is finer than one that was calibrated for a whole tensor, so input_scale is left
 * unread, and so are the scales of keys and values (the cache's are by position and head). Which
 * matrices are quantized, their tensors say.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include <string.h>

static const char *text(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

static void check_vllm(const struct config *c, const json_t *q)
{
    const char *scheme = text(q, "activation_scheme");
    const json_t *block = json_object_get(q, "weight_block_size");
    if (json_is_array(block))
        config_fail(c,
                    "quantization_config: weight_block_size [%lld, %lld] is not supported; there "
                    "may be a scale for each matrix or for each output",
                    (long long)json_integer_value(json_array_get(block, 0)),
                    (long long)json_integer_value(json_array_get(block, 1)));
    if (strcmp(scheme, "static") && strcmp(scheme, "dynamic"))
        config_fail(c, "quantization_config: activation_scheme '%.32s' is not static or dynamic",
                    scheme);
}

/* A group's weights or input_activations. */
static void check_float8(const struct config *c, const json_t *part, const char *what,
                         const char *strategy, const char *other)
{
    const char *has = text(part, "strategy");
    if (!json_is_object(part))
        config_fail(c, "quantization_config: %s that are not quantized are not supported", what);
    else if (json_integer_value(json_object_get(part, "num_bits")) != 8 ||
             strcmp(text(part, "type"), "float"))
        config_fail(c, "quantization_config: %s of %lld bits, type '%.32s' are not supported", what,
                    (long long)json_integer_value(json_object_get(part, "num_bits")),
                    text(part, "type"));
    else if (strcmp(has, strategy) && strcmp(has, other))
        config_fail(c, "quantization_config: %s with strategy '%.32s' are not supported", what,
                    has);
}

static void check_compressed(const struct config *c, const json_t *q)
{
    const json_t *groups = json_object_get(q, "config_groups"), *group;
    const char *format = text(q, "format"), *name;
    if (strcmp(format, "float-quantized") && strcmp(format, "naive-quantized"))
        config_fail(c, "quantization_config: compressed-tensors format '%.32s' is not supported",
                    format);
    json_object_foreach((json_t *)groups, name, group)
    {
        check_float8(c, json_object_get(group, "weights"), "weights", "tensor", "channel");
        check_float8(c, json_object_get(group, "input_activations"), "activations", "tensor",
                     "token");
    }
}

static void check_modelopt(const struct config *c, const json_t *q)
{
    const char *algo = text(q, "quant_algo");
    if (strcmp(algo, "FP8"))
        config_fail(c, "quantization_config: modelopt's quant_algo '%.32s' is not supported", algo);
}

void config_quantization(struct model_spec *s, const struct config *c)
{
    static const struct {
        const char *method;
        void (*check)(const struct config *c, const json_t *q);
    } known[] = {{"fp8", check_vllm},
                 {"compressed-tensors", check_compressed},
                 {"modelopt", check_modelopt}};
    const json_t *q = json_object_get(c->root, "quantization_config");
    if (!json_is_object(q))
        q = json_object_get(c->root, "compression_config"); /* older compressed-tensors */
    if (!json_is_object(q))
        return;
    const char *method = text(q, "quant_method");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(method, known[i].method)) {
            s->quantized = known[i].method;
            known[i].check(c, q);
            return;
        }
    config_fail(c,
                "quantization_config: quant_method '%.32s' is not supported; supported are fp8, "
                "compressed-tensors and modelopt, of FP8 weights",
                method);
}
