/* Fuzz target: one tokenizer file of any kind (SentencePiece, tiktoken, tekken, JSON) through load
 * and encode. The kind is told by content, as for a user's file.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello w\xC3\xB6rld  <s> 12\n\xF0\x9F\x98\x80\xFF x";
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    char path[64];
    int fd = memfd_create("tokenizer.model", MFD_CLOEXEC);
    if (fd < 0)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (write(fd, data, size) == (ssize_t)size && !tokenizer_load(&t, path, &err)) {
        struct token_vec v = {0};
        (void)!tokenizer_encode(t, text, sizeof text - 1, ENCODE_ADD_SPECIAL, 4096, &v, &err);
        token_vec_fini(&v);
        tokenizer_destroy(&t);
    }
    close(fd);
    return 0;
}
