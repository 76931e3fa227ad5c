/* bench_tokenizer FOLDER REPEAT FILE...: milliseconds to load, then to encode each file, best of
 * REPEAT, on one line. bench/tokenizer.py runs it beside the tokenizers package.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

static double since_ms(int64_t start)
{
    return (double)(clock_mono_ns() - start) / 1e6;
}

static double encode_ms(const struct tokenizer *t, const char *path, int repeat)
{
    FILE *f = fopen(path, "rb");
    enum { MAX = 1 << 26 };
    char *text = malloc(MAX);
    double best = -1;
    if (!f || !text)
        exit(1);
    size_t n = fread(text, 1, MAX, f);
    fclose(f);
    for (int i = 0; i < repeat; i++) {
        struct token_vec v = {0};
        int64_t start = clock_mono_ns();
        if (tokenizer_encode(t, text, n, 0, 0, &v, NULL))
            exit(1);
        double ms = since_ms(start);
        best = best < 0 || ms < best ? ms : best;
        token_vec_fini(&v);
    }
    free(text);
    return best;
}

int main(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    if (argc < 3)
        return 2;
    int repeat = (int)strtol(argv[2], NULL, 10);
    double load = -1;
    for (int i = 0; i < repeat; i++) {
        tokenizer_destroy(&t);
        int64_t start = clock_mono_ns();
        if (tokenizer_load(&t, argv[1], &err)) {
            fprintf(stderr, "%s\n", err.msg);
            return 1;
        }
        double ms = since_ms(start);
        load = load < 0 || ms < load ? ms : load;
    }
    printf("%.3f", load);
    for (int i = 3; i < argc; i++)
        printf(" %.3f", encode_ms(t, argv[i], repeat));
    printf("\n");
    tokenizer_destroy(&t);
    return 0;
}
