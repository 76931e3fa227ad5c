/* safetensors.h - the tensors of a checkpoint, mapped and borrowed.
 *
 * A folder holds model.safetensors, or shards that model.safetensors.index.json names; where there
 * is neither, pytorch_model.bin or its shards are read the same way (torchfile.h). Opening maps
 * them and checks everything that a header says: length, JSON, dtype, shape, byte ranges (they must
 * cover the data exactly: no overlap, no hole, nothing past the end), names (unique over all
 * shards, and as the index has them). What is wrong is named with its file and tensor. Only then is
 * any data looked at, by others.
 *
 * Thread: any, once open (read only).   Memory: headers in an arena; data stays in the mapping.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_SAFETENSORS_H
#define SL_MODEL_SAFETENSORS_H

#include "base/status.h"

enum { ST_MAX_DIMS = 8, ST_MAX_SHARDS = 1024 };

enum st_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_F8_E8M0,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_I64,
    ST_U64,
    ST_F64,
    ST_N_DTYPES
};

struct st_tensor {
    const char *name;
    const char *file; /* the shard's file name */
    enum st_dtype dtype;
    int n_dims;
    uint64_t dim[ST_MAX_DIMS];
    const void *data; /* not necessarily aligned */
    uint64_t bytes;
};

struct safetensors;

/* SL_ENOTFOUND: the folder has neither kind of files. */
SL_MUST_CHECK enum sl_status safetensors_open(struct safetensors **out, const char *dir,
                                              struct sl_err *err);
/* One file by its path. */
SL_MUST_CHECK enum sl_status safetensors_open_file(struct safetensors **out, const char *path,
                                                   struct sl_err *err);
/* One file's content in memory (tests, fuzzing); borrowed until close. */
SL_MUST_CHECK enum sl_status safetensors_parse(struct safetensors **out, const void *bytes,
                                               size_t n, const char *file, struct sl_err *err);
/* The same for a pytorch_model.bin. */
SL_MUST_CHECK enum sl_status safetensors_parse_torch(struct safetensors **out, const void *bytes,
                                                     size_t n, const char *file,
                                                     struct sl_err *err);
void safetensors_close(struct safetensors **s);

int safetensors_count(const struct safetensors *s);
const struct st_tensor *safetensors_at(const struct safetensors *s, int i); /* sorted by name */
const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name);
const char *st_dtype_name(enum st_dtype t);
size_t st_dtype_bytes(enum st_dtype t);

#endif
