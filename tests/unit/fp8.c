/* e4m3 against PyTorch 2.15: every code's value, and the codes of every float whose lower half is
 * one of a few patterns (so every bf16, and what lies just beside each).
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/fp8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* torch.arange(127, dtype=uint8).view(float8_e4m3fn).float() */
static const float value[127] = {
    0.0f,        0.001953125f, 0.00390625f, 0.005859375f, 0.0078125f,  0.009765625f,
    0.01171875f, 0.013671875f, 0.015625f,   0.017578125f, 0.01953125f, 0.021484375f,
    0.0234375f,  0.025390625f, 0.02734375f, 0.029296875f, 0.03125f,    0.03515625f,
    0.0390625f,  0.04296875f,  0.046875f,   0.05078125f,  0.0546875f,  0.05859375f,
    0.0625f,     0.0703125f,   0.078125f,   0.0859375f,   0.09375f,    0.1015625f,
    0.109375f,   0.1171875f,   0.125f,      0.140625f,    0.15625f,    0.171875f,
    0.1875f,     0.203125f,    0.21875f,    0.234375f,    0.25f,       0.28125f,
    0.3125f,     0.34375f,     0.375f,      0.40625f,     0.4375f,     0.46875f,
    0.5f,        0.5625f,      0.625f,      0.6875f,      0.75f,       0.8125f,
    0.875f,      0.9375f,      1.0f,        1.125f,       1.25f,       1.375f,
    1.5f,        1.625f,       1.75f,       1.875f,       2.0f,        2.25f,
    2.5f,        2.75f,        3.0f,        3.25f,        3.5f,        3.75f,
    4.0f,        4.5f,         5.0f,        5.5f,         6.0f,        6.5f,
    7.0f,        7.5f,         8.0f,        9.0f,         10.0f,       11.0f,
    12.0f,       13.0f,        14.0f,       15.0f,        16.0f,       18.0f,
    20.0f,       22.0f,        24.0f,       26.0f,        28.0f,       30.0f,
    32.0f,       36.0f,        40.0f,       44.0f,        48.0f,       52.0f,
    56.0f,       60.0f,        64.0f,       72.0f,        80.0f,       88.0f,
    96.0f,       104.0f,       112.0f,      120.0f,       128.0f,      144.0f,
    160.0f,      176.0f,       192.0f,      208.0f,       224.0f,      240.0f,
    256.0f,      288.0f,       320.0f,      352.0f,       384.0f,      416.0f,
    448.0f};

static void values(void **state)
{
    (void)state;
    for (int c = 0; c < 127; c++) {
        assert_int_equal(f32_bits(e4m3_f32((uint8_t)c)), f32_bits(value[c]));
        assert_int_equal(f32_bits(e4m3_f32((uint8_t)(c | 0x80))), f32_bits(-value[c]));
    }
    assert_true(isnan(e4m3_f32(0x7f)) && isnan(e4m3_f32(0xff)));
}

static uint64_t hash_codes(uint32_t low)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (uint32_t i = 0; i < 65536; i++)
        h = (h ^ f32_e4m3(bits_f32(i << 16 | low))) * 0x100000001b3u;
    return h;
}

/* torch.clamp(x, -448, 448).to(float8_e4m3fn) for x of bit patterns i << 16 | low; NaN is 0x7f. */
static void codes(void **state)
{
    (void)state;
    assert_true(hash_codes(0) == 0xd8b2feb674a31125u);
    assert_true(hash_codes(1) == 0x74a9fea1a741f4c5u); /* torch: and so just below the next one */
    assert_true(hash_codes(0x8000) == 0x74a9fea1a741f4c5u);
    assert_true(hash_codes(0xffff) == 0x74a9fea1a741f4c5u);
}

static void rounding(void **state)
{
    (void)state;
    for (int c = 0; c < 126; c++) {
        float mid = value[c] / 2 + value[c + 1] / 2; /* exact: ties go to the even code */
        assert_int_equal(f32_e4m3(mid), c + (c & 1));
        assert_int_equal(f32_e4m3(nextafterf(mid, 0)), c);
        assert_int_equal(f32_e4m3(-nextafterf(mid, 1000)), (c + 1) | 0x80);
    }
    assert_int_equal(f32_e4m3(449), 0x7e);
    assert_int_equal(f32_e4m3(1e30f), 0x7e);
    assert_int_equal(f32_e4m3(-INFINITY), 0xfe);
    assert_int_equal(f32_e4m3(NAN), 0x7f);
}

static void scales(void **state)
{
    (void)state;
    const float some[] = {1, -7, 3}, bad[] = {1, NAN, 3};
    assert_true(max_magnitude(some, 3) == 7);
    assert_true(isnan(max_magnitude(bad, 3)));
    assert_true(e4m3_scale(448) == 1);
    assert_true(e4m3_scale(0) > 0 && isfinite(1 / e4m3_scale(0)));
    assert_true(isnan(e4m3_scale(INFINITY)) && isnan(e4m3_scale(NAN)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(codes),
                                       cmocka_unit_test(rounding), cmocka_unit_test(scales)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
