/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of preface.c: PROXY v2 headers, byte by byte as the reference engine writes them. */
#include "preface.h"

#include "check.h"

#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"

static const struct addr SOURCE4 = {.ip = {10, 0, 0, 1}, .port = 0x1234, .family = 4};
static const struct addr TARGET4 = {.ip = {10, 0, 0, 2}, .port = 80, .family = 4};
static const struct addr SOURCE6 = {.ip = {0x20, 1, [15] = 1}, .port = 1, .family = 6};
static const struct addr TARGET6 = {.ip = {0x20, 1, [15] = 2}, .port = 2, .family = 6};

TEST(ipv4_with_an_identity) {
    static const char EXPECTED[] =
        SIGNATURE "\x21\x11\0\x1b\x0a\0\0\x01\x0a\0\0\x02\x12\x34\0\x50\xd0\0\x0cspiffe://a/b";
    uint8_t to[64];

    const size_t len =
        preface_proxy_v2(&SOURCE4, &TARGET4, text_of("spiffe://a/b"), to, sizeof(to));

    CHECK_MEM_EQ(to, len, EXPECTED, sizeof(EXPECTED) - 1);
}

TEST(ipv6_without_an_identity) {
    static const char EXPECTED[] = SIGNATURE
        "\x21\x21\0\x24\x20\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"
        "\x20\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\x01\0\x02";
    uint8_t to[64];

    const size_t len = preface_proxy_v2(&SOURCE6, &TARGET6, (struct text){0}, to, sizeof(to));

    CHECK_MEM_EQ(to, len, EXPECTED, sizeof(EXPECTED) - 1);
}

TEST(mixed_families_cannot_be_said) {
    static const char EXPECTED[] = SIGNATURE "\x21\x01\0\x04\xd0\0\x01x";
    uint8_t to[64];

    const size_t len = preface_proxy_v2(&SOURCE4, &TARGET6, text_of("x"), to, sizeof(to));

    CHECK_MEM_EQ(to, len, EXPECTED, sizeof(EXPECTED) - 1);
}

TEST(what_does_not_fit_is_not_written) {
    static char long_name[UINT16_MAX + 1];
    static uint8_t to[2 * UINT16_MAX];
    const struct text longest = {long_name, UINT16_MAX - (PREFACE_FIXED - 16)};
    const struct text too_long = {long_name, UINT16_MAX - (PREFACE_FIXED - 16) + 1};

    CHECK_INT_EQ(preface_proxy_v2(&SOURCE6, &TARGET6, text_of("x"), to, PREFACE_FIXED), 0);
    CHECK_INT_EQ(preface_proxy_v2(&SOURCE6, &TARGET6, text_of("x"), to, PREFACE_FIXED + 1),
                 PREFACE_FIXED + 1);
    CHECK_INT_EQ(preface_proxy_v2(&SOURCE6, &TARGET6, longest, to, sizeof(to)), 16 + UINT16_MAX);
    CHECK_INT_EQ(preface_proxy_v2(&SOURCE6, &TARGET6, too_long, to, sizeof(to)), 0);
}
