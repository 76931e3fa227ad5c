/* torchfile.h - the tensors of a pytorch_model.bin, as torch.save writes it.
 *
 * A zip archive with the pickle of the state dict (X/data.pkl) and one stored member for each
 * storage (X/data/KEY). Tensors point into the file's bytes; several may share a storage (tied
 * weights). What is no contiguous tensor is refused by name, and so is the format before torch 1.6.
 * Thread: any. SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_TORCHFILE_H
#define SL_MODEL_TORCHFILE_H

#include "model/safetensors.h"

/* name: of name_bytes, not NUL-terminated, as t->name is unset. */
typedef enum sl_status (*torch_tensor_fn)(void *ctx, const char *name, size_t name_bytes,
                                          const struct st_tensor *t);

/* Calls fn for each tensor of the file, in its order. t->file is `file`. */
SL_MUST_CHECK enum sl_status torch_read(const void *bytes, size_t n, const char *file,
                                        torch_tensor_fn fn, void *ctx, struct sl_err *err);

#endif
