/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/cachekey.h"

#include "base/mem.h"
#include "base/status.h"

#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

enum { KEYS_MIN = 16 };

static int32_t *bucket_of(const struct cachekeys *k, const uint64_t hash[2])
{
    return &k->bucket[hash[0] & (uint64_t)(k->n_keys - 1)];
}

/* Doubles the table; every key is put into its new bucket. */
static bool grow(struct cachekeys *k)
{
    int n = k->n_keys ? k->n_keys * 2 : KEYS_MIN;
    if (n > INT32_MAX / 4)
        return false;
    int32_t *bucket = mem_alloc((size_t)n, sizeof *bucket);
    struct cachekey *key = bucket ? mem_realloc(k->key, (size_t)n, sizeof *key) : NULL;
    if (!key) {
        mem_free(bucket);
        return false;
    }
    mem_free(k->bucket);
    k->key = key;
    k->bucket = bucket;
    int old = k->n_keys;
    k->n_keys = n;
    memset(key + old, 0, (size_t)(n - old) * sizeof *key);
    memset(bucket, 0xff, (size_t)n * sizeof *bucket);
    for (int32_t i = n - 1; i >= (old ? old : 1); i--) {
        key[i].next = k->unused;
        k->unused = i;
    }
    for (int32_t i = 1; i < old; i++)
        if (key[i].ref) {
            int32_t *b = bucket_of(k, key[i].hash);
            key[i].next = *b;
            *b = i;
        }
    return true;
}

int cachekeys_init(struct cachekeys *k)
{
    *k = (struct cachekeys){.unused = -1};
    return grow(k) ? 0 : -1;
}

void cachekeys_fini(struct cachekeys *k)
{
    for (int i = 0; i < k->n_keys; i++)
        if (k->key[i].ref)
            mem_free(k->key[i].bytes);
    mem_free(k->key);
    mem_free(k->bucket);
    *k = (struct cachekeys){.unused = -1};
}

int32_t cachekey_take(struct cachekeys *k, const char *bytes, size_t n)
{
    if (!bytes || n == 0)
        return 0;
    XXH128_hash_t h = XXH3_128bits(bytes, n);
    uint64_t hash[2] = {h.low64, h.high64};
    for (int32_t i = *bucket_of(k, hash); i >= 0; i = k->key[i].next)
        if (k->key[i].n == n && memcmp(k->key[i].bytes, bytes, n) == 0) {
            k->key[i].ref++;
            return i;
        }
    char *copy = mem_strndup(bytes, n);
    if (!copy || (k->unused < 0 && !grow(k))) {
        mem_free(copy);
        return CACHEKEY_NONE;
    }
    int32_t id = k->unused, *b = bucket_of(k, hash);
    k->unused = k->key[id].next;
    k->key[id] =
        (struct cachekey){.bytes = copy, .n = n, .hash = {hash[0], hash[1]}, .ref = 1, .next = *b};
    *b = id;
    k->n_used++;
    return id;
}

void cachekey_hold(struct cachekeys *k, int32_t id)
{
    if (id > 0)
        k->key[id].ref++;
}

void cachekey_drop(struct cachekeys *k, int32_t id)
{
    if (id <= 0)
        return;
    struct cachekey *key = &k->key[id];
    SL_ASSERT(key->ref > 0);
    if (--key->ref)
        return;
    int32_t *at = bucket_of(k, key->hash);
    while (*at != id)
        at = &k->key[*at].next;
    *at = key->next;
    mem_free(key->bytes);
    key->bytes = NULL;
    key->next = k->unused;
    k->unused = id;
    k->n_used--;
}
