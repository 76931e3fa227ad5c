/* SPDX-License-Identifier: Apache-2.0 */
#include "sample/rowmath.h"

#include "core/drawrow.h"

#include <math.h>
#include <string.h>

enum { LANES = 8 };

bool row_max(const float *x, int n, float *max)
{
    float lane[LANES];
    int bad[LANES] = {0};
    for (int j = 0; j < LANES; j++)
        lane[j] = -INFINITY;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            float v = x[i + j];
            lane[j] = v > lane[j] ? v : lane[j];
            bad[j] |= !(v < INFINITY); /* NaN compares false too */
        }
    }
    for (; i < n; i++) {
        lane[0] = x[i] > lane[0] ? x[i] : lane[0];
        bad[0] |= !(x[i] < INFINITY);
    }
    float m = lane[0];
    int any = bad[0];
    for (int j = 1; j < LANES; j++) {
        m = lane[j] > m ? lane[j] : m;
        any |= bad[j];
    }
    *max = m;
    return !any;
}

int32_t row_find(const float *x, int n, float max)
{
    enum { STRIDE = 64 };
    int i = 0;
    for (; i + STRIDE <= n; i += STRIDE) {
        int hit = 0;
        for (int j = 0; j < STRIDE; j++)
            hit |= x[i + j] == max;
        if (hit)
            break;
    }
    while (i < n - 1 && x[i] != max)
        i++;
    return i;
}

/* exp for x <= 0 to about 1 ulp: x = k ln2 + r, |r| <= ln2 / 2, a polynomial in r, times 2^k.
 * Written without branches so that the compiler can use vectors, and without libm so that a
 * token does not depend on the C library's version. A device that samples repeats it operation by
 * operation (backend/cuda/sample.cu). */
static inline float exp_neg(float x)
{
    float y = x < -87.0f ? -87.0f : x;        /* also takes -inf out of the arithmetic */
    float kf = y * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    int32_t bits;
    memcpy(&bits, &kf, sizeof bits);
    float k = kf - 12582912.0f;
    float r = y - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t scale_bits = (int32_t)((uint32_t)(bits - 0x4B400000 + 127) << 23);
    float scale;
    memcpy(&scale, &scale_bits, sizeof scale);
    p *= scale;
    return x < -87.0f ? 0.0f : p;
}

uint64_t row_sum_exp(const float *x, int n, float max)
{
    uint64_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += draw_weight(exp_neg(x[i] - max));
    return sum;
}

void row_exp(float *w, const float *x, int n, float max)
{
    for (int i = 0; i < n; i++)
        w[i] = exp_neg(x[i] - max);
}

int row_count_ge(const float *x, int n, float v)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        count += x[i] >= v;
    return count;
}

/* ---- selection: a heap whose root is the worst of the best k so far -------------------------- */

static inline bool worse(const float *x, int32_t a, int32_t b)
{
    return x[a] < x[b] || (x[a] == x[b] && a > b);
}

static void sift_down(const float *x, int32_t *heap, int n, int i)
{
    int32_t moving = heap[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && worse(x, heap[child + 1], heap[child]))
            child++;
        if (!worse(x, heap[child], moving))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

void row_top(const float *x, const int32_t *in, int n, int k, int32_t *ids)
{
    if (k <= 0)
        return;
    for (int i = 0; i < k; i++)
        ids[i] = in ? in[i] : i;
    for (int i = k / 2 - 1; i >= 0; i--)
        sift_down(x, ids, k, i);
    for (int i = k; i < n; i++) {
        int32_t id = in ? in[i] : i;
        if (x[id] <= x[ids[0]] && !worse(x, ids[0], id))
            continue; /* nearly always, once the heap holds large values */
        ids[0] = id;
        sift_down(x, ids, k, 0);
    }
    for (int end = k - 1; end > 0; end--) { /* the worst goes last */
        int32_t worst = ids[0];
        ids[0] = ids[end];
        ids[end] = worst;
        sift_down(x, ids, end, 0);
    }
}
