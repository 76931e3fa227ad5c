/* Any bytes as a safetensors file: refused with a message, or tensors that lie inside the bytes.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/safetensors.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    enum sl_status st = safetensors_parse(&s, data, n, "fuzz", &err);
    if (st) {
        SL_ASSERT(!s && err.code == st && err.msg[0]);
        return 0;
    }
    uint64_t total = 0;
    for (int i = 0; i < safetensors_count(s); i++) {
        const struct st_tensor *t = safetensors_at(s, i);
        const uint8_t *p = t->data;
        SL_ASSERT(p >= data + 8 && t->bytes <= n && p <= data + n - t->bytes);
        SL_ASSERT(safetensors_find(s, t->name) == t);
        total += t->bytes;
    }
    SL_ASSERT(total <= n - 8); /* no byte is claimed twice */
    safetensors_close(&s);
    return 0;
}
