/* unpickle.h - the pickles that torch.save makes of a state dict, and nothing else.
 *
 * A pickle is a program; run as Python runs it, it may do anything. This machine knows numbers,
 * strings, tuples, lists and dictionaries, and three kinds of globals: torch's storage types,
 * torch._utils._rebuild_tensor_v2 and collections.OrderedDict. It builds descriptions of tensors.
 * Any other global, and any other opcode, is refused by name.
 *
 * Time and memory are linear in the pickle's bytes, which are at most PICKLE_MAX_BYTES; nothing
 * recurses.   Thread: its owner's.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_UNPICKLE_H
#define SL_MODEL_UNPICKLE_H

#include "base/mem.h"
#include "model/safetensors.h"

/* The largest known ones have half a megabyte; a value takes some 20 times its bytes. */
enum { PICKLE_MAX_BYTES = 16 << 20 };

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_REAL,
    PICKLE_STRING,
    PICKLE_TUPLE,
    PICKLE_LIST, /* its items are dropped: no tensor is reached through one */
    PICKLE_DICT,
    PICKLE_GLOBAL,
    PICKLE_STORAGE,
    PICKLE_TENSOR,
    PICKLE_MARK
};

struct pickle_value {
    enum pickle_kind kind;
    uint32_t n; /* bytes of a string, items of a tuple */
    union {
        int64_t integer;    /* BOOL, INT */
        const char *string; /* in the pickle; not NUL-terminated */
        const struct pickle_value *item;
        struct pickle_dict *dict;
        const struct pickle_global *global;
        const struct pickle_storage *storage;
        const struct pickle_tensor *tensor;
    };
};

struct pickle_dict {
    struct pickle_value *pair; /* key, value, key, value, in order of insertion */
    size_t n, cap;             /* pairs */
};

struct pickle_storage {
    enum st_dtype dtype;
    const char *key; /* which one */
    size_t key_bytes;
    uint64_t elements;
};

struct pickle_tensor {
    const struct pickle_storage *storage;
    int n_dims;
    uint64_t offset, dim[ST_MAX_DIMS], stride[ST_MAX_DIMS]; /* in elements */
};

struct pickle {
    struct pickle_value root;
    struct arena arena;
};

/* file: its name in messages. Strings point into `bytes`. On failure *p is empty. */
SL_MUST_CHECK enum sl_status unpickle(struct pickle *p, const void *bytes, size_t n,
                                      const char *file, struct sl_err *err);
void pickle_fini(struct pickle *p);

#endif
