/* Any bytes as a pytorch_model.bin, and any bytes as its pickle: refused with a message, or tensors
 * that lie inside the bytes.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/safetensors.h"
#include "model/unpickle.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors *s = NULL;
    struct pickle p;
    struct sl_err err = {0};
    enum sl_status st = unpickle(&p, data, n, "fuzz", &err);
    SL_ASSERT(st ? err.code == st && err.msg[0] : p.root.kind != PICKLE_MARK);
    pickle_fini(&p);
    err = (struct sl_err){0};
    st = safetensors_parse_torch(&s, data, n, "fuzz", &err);
    if (st) {
        SL_ASSERT(!s && err.code == st && err.msg[0]);
        return 0;
    }
    for (int i = 0; i < safetensors_count(s); i++) {
        const struct st_tensor *t = safetensors_at(s, i);
        const uint8_t *at = t->data;
        SL_ASSERT(at >= data && t->bytes <= n && at <= data + n - t->bytes);
        SL_ASSERT(safetensors_find(s, t->name) == t);
    }
    safetensors_close(&s);
    return 0;
}
