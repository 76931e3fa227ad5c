/* tokenizer_impl.h - the parts of a tokenizer, shared by tokenizer_*.c and detok.c only.
 *
 * text -> added tokens cut out -> normalizer -> pre-tokenizer steps -> model -> post-processor.
 * Everything here is built at load and immutable afterwards; what a call writes to is in its
 * struct scratch, and scratches are pooled under the tokenizer's lock.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_TOKENIZER_IMPL_H
#define SL_TEXT_TOKENIZER_IMPL_H

#include "text/tokenizer.h"
#include "base/strbuf.h"

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>

/* Limits on what a file may ask for. */
enum {
    TOK_MAX_ID = 1 << 22,          /* arrays are indexed by id */
    TOK_MAX_STEPS = 64,            /* normalizers, pre-tokenizers, decoders: each at most */
    TOK_MAX_ADDED_BYTES = 1 << 24, /* all added tokens together */
    TOK_MAX_FILE_BYTES = 1 << 28
};

struct text_span {
    const char *s;
    size_t n;
};

/* ---- strmap: string -> id, keys copied (tokenizer_map.c) --------------------------------------
 */

struct strmap {
    char *pool; /* the keys, each with a NUL behind it */
    size_t pool_len, pool_cap;
    struct strmap_entry {
        uint32_t off, len;
        int32_t id;
    } * entries;
    uint32_t n, cap;
    struct strmap_slot {
        uint32_t tag, entry; /* entry + 1; 0: free */
    } * slots;
    uint32_t mask;
};

bool strmap_reserve(struct strmap *m, size_t n, size_t pool_bytes);
/* Replaces the id of a key that is there. False: no memory (or 4 GiB of keys). */
bool strmap_put(struct strmap *m, const char *s, size_t n, int32_t id);
/* A key that is there stays as an entry of its own; strmap_get gives the last. */
bool strmap_append(struct strmap *m, const char *s, size_t n, int32_t id);
int32_t strmap_get(const struct strmap *m, const char *s, size_t n); /* -1: none */
/* The same in steps, for many keys at a time: probe all, prefetch all, then read all. */
struct strmap_probe {
    const char *s;
    size_t n;
    uint32_t tag;
};
struct strmap_probe strmap_probe(const struct strmap *m, const char *s, size_t n);
void strmap_prefetch(const struct strmap *m, const struct strmap_probe *p);
int32_t strmap_found(const struct strmap *m, const struct strmap_probe *p);
void strmap_fini(struct strmap *m);

/* ---- trie: byte strings -> value >= 0; immutable (tokenizer_trie.c) ----------------------------
 */

struct trie;
struct trie_key {
    const char *s;
    size_t n;
    int32_t value;
};
/* Sorts keys; of equal ones the lowest value wins. No key is empty. */
SL_MUST_CHECK enum sl_status trie_create(struct trie **out, struct trie_key *keys, uint32_t n,
                                         struct sl_err *err);
void trie_destroy(struct trie **t);
/* From node (0: the root) along one byte; 0: no such child. */
uint32_t trie_step(const struct trie *t, uint32_t node, uint8_t byte);
int32_t trie_value(const struct trie *t, uint32_t node); /* -1: no key ends here */
/* Length of the longest key at s; 0: none. */
size_t trie_longest(const struct trie *t, const char *s, size_t n, int32_t *value);

/* ---- regular expressions (tokenizer_regex.c) --------------------------------------------------
 */

struct regex; /* immutable */
struct scratch;
/* pattern: Oniguruma's Ruby syntax, as the tokenizers library reads it. */
SL_MUST_CHECK enum sl_status regex_create(struct regex **out, const char *pattern, size_t n,
                                          struct sl_err *err);
void regex_destroy(struct regex **r);
/* The first match in s[from, n): 1 found, 0 none, < 0 an sl_status (too expensive). */
int regex_find(const struct regex *r, struct scratch *sc, const char *s, size_t n, size_t from,
               size_t *start, size_t *end);

/* What a Split or Replace looks for. */
struct pattern {
    enum pattern_kind { PATTERN_LITERAL, PATTERN_REGEX, PATTERN_CLASS } kind;
    char *literal;
    size_t literal_len;
    struct regex *regex;
    bool (*in_class)(int32_t cp);
};
void pattern_fini(struct pattern *p);
/* Walks the matches of a pattern as the tokenizers library does: no empty match right behind
 * another. Zero-initialise pos and last. */
struct pattern_iter {
    size_t pos, last;
    bool started;
};
int pattern_next(const struct pattern *p, struct scratch *sc, const char *s, size_t n,
                 struct pattern_iter *it, size_t *start, size_t *end);

/* ---- normalizers (tokenizer_norm.c) -----------------------------------------------------------
 */

enum norm_kind {
    NORM_UNICODE, /* form */
    NORM_LOWERCASE,
    NORM_STRIP,
    NORM_STRIP_ACCENTS,
    NORM_BERT,
    NORM_NMT,
    NORM_REPLACE,
    NORM_PREPEND,
    NORM_BYTE_LEVEL,
    NORM_CHARSMAP,
    NORM_COLLAPSE_SPACES /* SentencePiece's remove_extra_whitespaces, from tokenizer.model */
};

struct charsmap; /* a SentencePiece precompiled character map (tokenizer_charsmap.c) */
SL_MUST_CHECK enum sl_status charsmap_create(struct charsmap **out, const void *blob, size_t bytes,
                                             struct sl_err *err);
SL_MUST_CHECK enum sl_status charsmap_from_base64(struct charsmap **out, const char *s, size_t n,
                                                  struct sl_err *err);
void charsmap_destroy(struct charsmap **c);
void charsmap_apply(const struct charsmap *c, struct strbuf *out, const char *s, size_t n);
bool base64_decode(struct strbuf *out, const char *s, size_t n); /* appends */

struct normalizer {
    enum norm_kind kind;
    int form;                              /* NORM_UNICODE */
    bool left, right;                      /* NORM_STRIP */
    bool clean, cjk, strip_accents, lower; /* NORM_BERT */
    struct pattern pattern;                /* NORM_REPLACE */
    char *content;                         /* NORM_REPLACE, NORM_PREPEND */
    size_t content_len;
    struct charsmap *charsmap;
};
void normalizer_fini(struct normalizer *n);

/* ---- pre-tokenizer steps (tokenizer_pre.c) ----------------------------------------------------
 */

enum pre_kind {
    PRE_SPLIT,        /* pattern, behavior, invert */
    PRE_WORDS,        /* runs of \w, runs of neither \w nor \s */
    PRE_PREFIX_SPACE, /* ByteLevel's add_prefix_space */
    PRE_BYTE_MAP,     /* bytes as GPT-2's characters */
    PRE_METASPACE,    /* replacement, scheme */
    PRE_SCRIPTS,
    PRE_FIXED_LENGTH /* length */
};
enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
};
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pre_step {
    enum pre_kind kind;
    struct pattern pattern;
    enum split_behavior behavior;
    bool invert;
    char replacement[8]; /* PRE_METASPACE: one character */
    enum prepend_scheme scheme;
    size_t length;
};

/* ---- models -----------------------------------------------------------------------------------
 */

enum model_kind { MODEL_BPE, MODEL_UNIGRAM, MODEL_WORDPIECE, MODEL_WORDLEVEL };

struct merge_slot {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank;
    int32_t id;
};

struct bpe {
    struct merge_slot *merges;
    uint32_t merge_mask;
    struct strmap raw;     /* bytes -> id, for ignore_merges when bytes is set */
    int32_t byte_id[256];  /* bytes: the token of each byte; else of <0xNN>; -1: none */
    int32_t ascii_id[128]; /* !bytes: the token of each ASCII character; -1: none */
    bool cuts_at_meta;     /* a word may be cut in front of U+2581: see tokenizer_bpe.c */
    bool bytes;            /* words come as bytes: the last pre-tokenizer step is ByteLevel */
    bool ignore_merges, byte_fallback, all_bytes, fuse_unk;
    int32_t unk_id;
    char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL: none */
};

struct unigram; /* tokenizer_unigram.c */

/* ---- added tokens (tokenizer_added.c) ---------------------------------------------------------
 */

struct added_token {
    int32_t id;
    uint32_t len;
    char *content; /* NUL-terminated */
    bool special, lstrip, rstrip, single_word, normalized;
};

struct added {
    struct added_token *tokens;
    int n, cap;
    struct strmap by_content; /* -> index into tokens */
    struct trie *raw;         /* looked for in the text as it is */
    struct trie *normalized;  /* looked for in the normalized text */
};

/* ---- decoder steps (detok.c) ------------------------------------------------------------------
 */

enum dec_kind {
    DEC_BYTE_LEVEL,
    DEC_BYTE_FALLBACK,
    DEC_FUSE,
    DEC_REPLACE,
    DEC_STRIP,
    DEC_METASPACE,
    DEC_WORDPIECE,
    DEC_BPE,
    DEC_CTC,
    DEC_JOIN_SPACE /* no decoder at all: tokens with spaces between them */
};

struct dec_step {
    enum dec_kind kind;
    struct pattern pattern; /* DEC_REPLACE */
    char *content;          /* DEC_REPLACE: by what; DEC_STRIP: the character; DEC_METASPACE:
                               replacement; DEC_WORDPIECE: prefix; DEC_BPE: suffix; DEC_CTC: pad */
    size_t content_len;
    char *delimiter; /* DEC_CTC: word_delimiter_token */
    size_t start, stop;
    bool cleanup, drop_first; /* drop_first: DEC_METASPACE drops the first token's */
};
void dec_step_fini(struct dec_step *s);
struct tokenizer;
/* What the step makes of one whole token, appended to *out, which must be empty. first, last: of
 * the text; glue: no space in front. < 0: an sl_status (a pattern too expensive). */
int dec_apply(const struct dec_step *d, struct scratch *sc, const char *s, size_t n, bool first,
              bool last, bool glue, struct strbuf *out);
int dec_byte_token(const char *s, size_t n); /* <0xNN>: the byte; else -1 */
/* What the token decodes to in the middle of a text. is_byte: a byte, perhaps no character. */
SL_MUST_CHECK enum sl_status dec_token_bytes(const struct tokenizer *t, struct scratch *sc,
                                             int32_t id, struct strbuf *out, struct strbuf *tmp,
                                             bool *is_byte);

/* ---- the tokenizer ----------------------------------------------------------------------------
 */

struct post_piece {
    int sequence; /* 0: A, 1: B, -1: ids */
    int32_t *ids;
    int n;
};
struct post {
    struct post_piece *single, *pair;
    int n_single, n_pair;
};

struct tokenizer {
    enum model_kind kind;
    struct strmap model_vocab; /* the model's tokens as the file writes them */
    struct bpe bpe;
    struct unigram *unigram;
    int32_t unk_id;                  /* WordPiece, WordLevel */
    struct trie *wp_first, *wp_rest; /* WordPiece: tokens that begin a word; the others, less
                                        their prefix */
    size_t wp_max_chars;

    struct normalizer norm[TOK_MAX_STEPS];
    int n_norm;
    struct pre_step pre[TOK_MAX_STEPS];
    int n_pre;
    struct post post;
    struct dec_step dec[TOK_MAX_STEPS];
    int n_dec, n_dec_token; /* the steps behind n_dec_token look at whole texts only */
    struct added added;
    bool exact_ids; /* added tokens get the ids that their file says */
    bool llama3;    /* a tiktoken file that says less than there is to know */
    bool has_config_tokens;

    int n_ids;
    const char **token;  /* [n_ids]: surface, NULL where no token has the id */
    uint32_t *token_len; /* [n_ids] */
    struct vocab vocab;
    uint32_t *vocab_start;
    uint8_t *vocab_bytes, *vocab_flags;

    pthread_mutex_t lock; /* guards pool */
    bool lock_ready;
    struct scratch *pool;
};

enum { WORD_CACHE_KEY = 26, WORD_CACHE_IDS = 8, WORD_CACHE_SLOTS = 1 << 13 };
struct word_slot { /* 64 bytes */
    uint32_t tag;
    uint8_t len, n; /* len 0: free */
    char key[WORD_CACHE_KEY];
    int32_t ids[WORD_CACHE_IDS];
};

struct bpe_symbol {
    int32_t id;
    int32_t prev, next; /* -1: none */
    uint32_t len;       /* 0: merged away */
};
struct bpe_merge {
    uint32_t rank, pos;
    int32_t id;
};

/* What one encode writes to. */
struct scratch {
    struct scratch *next;
    void *match_data, *match_context, *jit_stack; /* PCRE2's */
    struct word_slot *cache;                      /* [WORD_CACHE_SLOTS] */
    struct bpe_symbol *symbols;
    size_t n_symbols, cap_symbols;
    struct bpe_merge *heap;
    size_t n_heap, cap_heap;
    void *lattice; /* Unigram's */
    size_t lattice_cap;
    struct strbuf repaired, norm[2], step[TOK_MAX_STEPS], shadow[TOK_MAX_STEPS], word;
};

/* One call of tokenizer_encode. */
struct encoder {
    const struct tokenizer *t;
    struct scratch *sc;
    struct token_vec *out;
    size_t limit; /* out->n must not pass it */
    unsigned flags;
    struct sl_err *err;
};
SL_MUST_CHECK enum sl_status encoder_emit(struct encoder *e, const int32_t *ids, size_t n);

/* Runs the pre-tokenizer from `step` on and hands the words to the model. at_origin: s begins where
 * the whole text began (Metaspace's "first"). */
SL_MUST_CHECK enum sl_status pre_run(struct encoder *e, int step, const char *s, size_t n,
                                     bool at_origin);
void pre_step_fini(struct pre_step *p);
/* Runs the normalizers; *s, *n become the result (in the scratch). *at_origin turns false when the
 * front was cut off. */
SL_MUST_CHECK enum sl_status norm_run(const struct tokenizer *t, struct scratch *sc, const char **s,
                                      size_t *n, bool *at_origin, struct sl_err *err);
SL_MUST_CHECK enum sl_status model_word(struct encoder *e, const char *s, size_t n);

SL_MUST_CHECK enum sl_status bpe_word(struct encoder *e, const char *s, size_t n);
SL_MUST_CHECK enum sl_status bpe_finish(struct tokenizer *t, struct sl_err *err);
void bpe_fini(struct bpe *b);
/* Room for n merges; then each merge in rank order. */
SL_MUST_CHECK enum sl_status bpe_reserve_merges(struct bpe *b, size_t n, struct sl_err *err);
/* The same from the texts of both sides; joined: somewhere to put them together. */
SL_MUST_CHECK enum sl_status bpe_add_merge(struct tokenizer *t, const char *a, size_t a_len,
                                           const char *b, size_t b_len, uint32_t rank,
                                           struct strbuf *joined, struct sl_err *err);
void bpe_prefetch_merge(const struct bpe *b, int32_t left, int32_t right);
void bpe_put_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);

/* scores: [n], by id, taken over on success. unk_id -1: none. */
SL_MUST_CHECK enum sl_status unigram_create(struct unigram **out, const struct strmap *vocab,
                                            double *scores, size_t n, int32_t unk_id,
                                            bool byte_fallback, struct sl_err *err);
void unigram_destroy(struct unigram **u);
SL_MUST_CHECK enum sl_status unigram_word(struct encoder *e, const char *s, size_t n);

SL_MUST_CHECK enum sl_status wordpiece_build(struct tokenizer *t, const char *prefix,
                                             struct sl_err *err);
SL_MUST_CHECK enum sl_status wordpiece_word(struct encoder *e, const char *s, size_t n);
SL_MUST_CHECK enum sl_status wordlevel_word(struct encoder *e, const char *s, size_t n);

SL_MUST_CHECK enum sl_status added_put(struct tokenizer *t, const struct added_token *tok,
                                       struct sl_err *err);
/* id: what the file says; -1: nothing. */
SL_MUST_CHECK enum sl_status added_parse(struct tokenizer *t, const json_t *json, long long id,
                                         struct sl_err *err);
SL_MUST_CHECK enum sl_status added_finish(struct tokenizer *t, struct sl_err *err);
void added_fini(struct added *a);
/* Cuts added tokens out of s; text between goes to `text`. */
typedef enum sl_status (*added_text_fn)(struct encoder *e, const char *s, size_t n, bool at_origin);
SL_MUST_CHECK enum sl_status added_run(struct encoder *e, const struct trie *trie, const char *s,
                                       size_t n, bool at_origin, added_text_fn text);

void post_fini(struct post *p);
void post_piece_fini(struct post_piece *p, int n);
SL_MUST_CHECK enum sl_status post_parse(struct tokenizer *t, const json_t *json,
                                        struct sl_err *err);
/* BERT's and RoBERTa's, from the tokens' texts. */
SL_MUST_CHECK enum sl_status post_set_cls_sep(struct tokenizer *t, const char *cls, const char *sep,
                                              bool roberta, struct sl_err *err);

/* Puts the JSON's parts into *t. */
SL_MUST_CHECK enum sl_status tokenizer_parse_json(struct tokenizer *t, const json_t *root,
                                                  struct sl_err *err);
SL_MUST_CHECK enum sl_status norm_parse(struct tokenizer *t, const json_t *json, int depth,
                                        struct sl_err *err);
SL_MUST_CHECK enum sl_status pre_parse(struct tokenizer *t, const json_t *json, int depth,
                                       struct sl_err *err);
SL_MUST_CHECK enum sl_status dec_parse(struct tokenizer *t, const json_t *json, int depth,
                                       struct sl_err *err);
SL_MUST_CHECK enum sl_status pattern_parse(struct pattern *p, const json_t *json, const char *what,
                                           struct sl_err *err);
SL_MUST_CHECK enum sl_status pattern_literal(struct pattern *p, const char *s, size_t n,
                                             struct sl_err *err);
SL_MUST_CHECK enum sl_status pattern_regex(struct pattern *p, const char *s, size_t n,
                                           struct sl_err *err);

/* A step of each kind, zeroed, at the end of its list; NULL: the list is full (message set). */
struct normalizer *norm_push(struct tokenizer *t, enum norm_kind kind, struct sl_err *err);
struct pre_step *pre_push(struct tokenizer *t, enum pre_kind kind, struct sl_err *err);
struct dec_step *dec_push(struct tokenizer *t, enum dec_kind kind, struct sl_err *err);
SL_MUST_CHECK enum sl_status pre_push_byte_level(struct tokenizer *t, bool prefix_space,
                                                 bool use_regex, struct sl_err *err);

SL_MUST_CHECK enum sl_status pre_push_bert(struct tokenizer *t, struct sl_err *err);
SL_MUST_CHECK enum sl_status vocab_parse(struct tokenizer *t, json_t *vocab, struct sl_err *err);
int norm_form_nfc(void);
bool text_is_utf8(const char *s, size_t n);

/* ---- files ------------------------------------------------------------------------------------
 */

/* A folder or one file (tokenizer_files.c). */
SL_MUST_CHECK enum sl_status tokenizer_from_dir(struct tokenizer *t, const char *path,
                                                struct sl_err *err);

/* tokenizer_tiktoken.c. name: the file's, which tells the split pattern. */
extern const char tokenizer_qwen_pattern[];
bool is_tiktoken(const char *data, size_t bytes);
SL_MUST_CHECK enum sl_status tokenizer_from_tiktoken(struct tokenizer *t, const char *data,
                                                     size_t bytes, const char *name,
                                                     struct sl_err *err);
SL_MUST_CHECK enum sl_status tiktoken_finish_llama3(struct tokenizer *t, struct sl_err *err);
SL_MUST_CHECK enum sl_status tokenizer_from_tekken(struct tokenizer *t, const json_t *root,
                                                   struct sl_err *err);

/* tokenizer_spm.c. config: tokenizer_config.json, may be NULL. */
bool is_sentencepiece(const char *data, size_t bytes);
SL_MUST_CHECK enum sl_status tokenizer_from_sentencepiece(struct tokenizer *t, const char *data,
                                                          size_t bytes, const json_t *config,
                                                          struct sl_err *err);

/* tokenizer_config.c. config: tokenizer_config.json, updated; map: special_tokens_map.json; listed:
 * added_tokens.json; either may be NULL. */
SL_MUST_CHECK enum sl_status config_apply(struct tokenizer *t, json_t *config, json_t *map,
                                          json_t *listed, struct sl_err *err);
/* The template that puts these around a text; NULL: not. */
SL_MUST_CHECK enum sl_status config_set_bos_eos(struct tokenizer *t, const char *bos,
                                                const char *eos, struct sl_err *err);
const char *config_token(const json_t *config, const char *key); /* "bos_token"; NULL: none */

struct tokenizer *tokenizer_new(void);
/* After everything was parsed: tries, id tables, vocab. */
SL_MUST_CHECK enum sl_status tokenizer_finish(struct tokenizer *t, struct sl_err *err);

struct scratch *scratch_take(const struct tokenizer *t);
void scratch_give(const struct tokenizer *t, struct scratch *sc);
void scratch_destroy(struct scratch *sc);

/* GPT-2's byte alphabet: byte -> character, character -> byte (-1: not in it). */
int32_t byte_to_char(unsigned char b);
int char_to_byte(int32_t cp);
/* s as bytes of the alphabet; false: a character is not in it (out untouched or partial). */
bool byte_level_bytes(const char *s, size_t n, struct strbuf *out);

#endif
