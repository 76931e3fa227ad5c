/* tokenizer.h - text to token ids and back.
 *
 * Reads tokenizer.json (the Hugging Face tokenizers format) and gives what that library gives.
 * Immutable after loading.   Thread: any, all calls.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_TOKENIZER_H
#define SL_TEXT_TOKENIZER_H

#include "base/status.h"
#include "core/vocab.h"

struct tokenizer;

/* Growing array of ids; zero-initialise, free with token_vec_fini. */
struct token_vec {
    int32_t *ids;
    size_t n, cap;
};
void token_vec_fini(struct token_vec *v);

/* dir: a model folder; a path to a tokenizer file works too. */
SL_MUST_CHECK enum sl_status tokenizer_load(struct tokenizer **out, const char *dir,
                                            struct sl_err *err);
/* tokenizer.json from memory (tests, fuzzing). */
SL_MUST_CHECK enum sl_status tokenizer_from_json(struct tokenizer **out, const char *json,
                                                 size_t bytes, struct sl_err *err);
void tokenizer_destroy(struct tokenizer **t);

enum encode_flag {
    ENCODE_ADD_SPECIAL = 1, /* the post-processor's BOS and so on */
    ENCODE_PLAIN = 2        /* special tokens in the text are ordinary text */
};
/* Appends to *out. Invalid UTF-8 becomes U+FFFD, as Python's errors="replace". max_tokens > 0:
 * stops with SL_EINVAL once more than that are certain. */
SL_MUST_CHECK enum sl_status tokenizer_encode(const struct tokenizer *t, const char *text,
                                              size_t bytes, unsigned flags, size_t max_tokens,
                                              struct token_vec *out, struct sl_err *err);
/* A pair of texts, as cross-encoders take it (BERT's [CLS] A [SEP] B [SEP]). *second: how many
 * tokens stand before B's own. */
SL_MUST_CHECK enum sl_status tokenizer_encode_pair(const struct tokenizer *t, const char *a,
                                                   size_t a_bytes, const char *b, size_t b_bytes,
                                                   unsigned flags, size_t *second,
                                                   struct token_vec *out, struct sl_err *err);
/* Whole-text decode as transformers' decode(); *text is NUL-terminated, free it with mem_free.
 * SL_EINVAL for ids outside the vocabulary. */
SL_MUST_CHECK enum sl_status tokenizer_decode(const struct tokenizer *t, const int32_t *ids,
                                              size_t n, bool skip_special, char **text,
                                              size_t *bytes, struct sl_err *err);
const struct vocab *tokenizer_vocab(const struct tokenizer *t);
/* The token as the vocabulary writes it, NUL-terminated; NULL outside the vocabulary. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id);
int32_t tokenizer_token_id(const struct tokenizer *t, const char *token); /* -1: none */

/* Incremental detokenizing of one choice: bytes come out as soon as they can no longer change, and
 * never end inside a UTF-8 character. The concatenation equals tokenizer_decode of all ids.
 * Thread: its consumer's. */
struct detok;
/* spaces_between_special false (and skip_special false): no space between added tokens that follow
 * each other, where the decoder would write one. */
SL_MUST_CHECK enum sl_status detok_create(struct detok **out, const struct tokenizer *t,
                                          bool skip_special, bool spaces_between_special,
                                          struct sl_err *err);
void detok_destroy(struct detok **d);
struct strbuf;
/* Before the first detok_push: the tokens in front of it (the prompt). What they decode to is not
 * given out; it only decides what depends on them: whether a first space stays. */
SL_MUST_CHECK enum sl_status detok_prime(struct detok *d, const int32_t *ids, size_t n);
/* Appends what token adds; an id outside the vocabulary adds nothing. */
SL_MUST_CHECK enum sl_status detok_push(struct detok *d, int32_t token, struct strbuf *out);
/* The end: an unfinished character becomes U+FFFD. */
SL_MUST_CHECK enum sl_status detok_finish(struct detok *d, struct strbuf *out);

#endif
