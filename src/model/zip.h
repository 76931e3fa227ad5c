/* zip.h - the members of a zip archive in memory, as far as torch.save writes it: stored, never
 * compressed.
 *
 * The central directory is read with its zip64 fields; every offset and length is compared with
 * the bytes that are there before it is followed.   Memory: the archive's; only an index is made.
 * Thread: its owner's.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_ZIP_H
#define SL_MODEL_ZIP_H

#include "base/status.h"

struct zip_member {
    const char *name; /* not NUL-terminated */
    size_t name_bytes;
    const unsigned char *data;
    uint64_t bytes;
};

struct zip {
    struct zip_member *member; /* sorted by name */
    size_t n;
};

/* Whether the bytes begin like a zip archive. */
bool zip_is_one(const void *bytes, size_t n);
/* file: its name in messages. On failure *z is empty. */
SL_MUST_CHECK enum sl_status zip_open(struct zip *z, const void *bytes, size_t n, const char *file,
                                      struct sl_err *err);
void zip_close(struct zip *z);
const struct zip_member *zip_find(const struct zip *z, const char *name, size_t name_bytes);

#endif
