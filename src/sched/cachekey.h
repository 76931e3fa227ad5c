/* cachekey.h - interned extra keys of the prefix cache: what must be equal beside the tokens for
 * two blocks to have the same content (the request's cache salt; an adapter's name, an image's hash
 * would join it as more bytes).
 *
 * A key is compared byte by byte when it is taken; from then on its id stands for it. Ids are small
 * and used again, but not while anybody (a request, a node of the prefix cache) refers to them.
 * Id 0 is the empty key.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread. */
#ifndef SL_SCHED_CACHEKEY_H
#define SL_SCHED_CACHEKEY_H

#include <stddef.h>
#include <stdint.h>

struct cachekey {
    char *bytes;
    size_t n;
    uint64_t hash[2];
    int ref;      /* 0: unused, and `next` links the unused ones */
    int32_t next; /* in its bucket */
};

struct cachekeys {
    struct cachekey *key; /* [n_keys]; key[0] is the empty key */
    int32_t *bucket;      /* [n_keys rounded to a power of two] */
    int n_keys, n_used;
    int32_t unused; /* list head, -1: none */
};

enum { CACHEKEY_NONE = -1 };

int cachekeys_init(struct cachekeys *k); /* 0, or -1: no memory */
void cachekeys_fini(struct cachekeys *k);
/* CACHEKEY_NONE: no memory. Takes a reference; NULL or no bytes give 0. */
int32_t cachekey_take(struct cachekeys *k, const char *bytes, size_t n);
void cachekey_hold(struct cachekeys *k, int32_t id);
void cachekey_drop(struct cachekeys *k, int32_t id);

#endif
