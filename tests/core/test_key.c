/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of key.c: the bytes of keys, what masking leaves, the keyed hash. */
#include "key.h"

#include "bytes.h"
#include "check.h"

static const struct addr POD = {.ip = {10, 0, 0, 1}, .port = 40000, .family = 4};
static const struct addr OTHER_POD = {.ip = {10, 0, 0, 9}, .port = 40000, .family = 4};
static const struct addr SERVICE = {.ip = {10, 96, 0, 1}, .port = 80, .family = 4};

/* --- packing */

TEST(a_captured_key_is_source_ip_and_destination) {
    uint8_t to[64];
    struct bytes expected = {.len = 0};
    put_ip(&expected, &POD);
    put_addr(&expected, &SERVICE);

    const size_t len = key_pack_captured(&POD, &SERVICE, to, sizeof(to));

    CHECK_MEM_EQ(to, len, expected.at, expected.len);
}

TEST(a_captured_key_needs_its_room) {
    uint8_t to[64];

    CHECK_INT_EQ(key_pack_captured(&POD, &SERVICE, to, 35), 0);
    CHECK_INT_EQ(key_pack_captured(&POD, &SERVICE, to, 36), 36);
}

static struct key_request example(const struct text *baggage, size_t n_baggage) {
    return (struct key_request){
        .local = SERVICE,
        .src = POD,
        .identity = text_of("spiffe://td/ns/a/sa/b"),
        .authority = text_of("10.96.0.1:80"),
        .forwarded = text_of("for=x;host=\"shop.example\""),
        .has_network = true,
        .network = text_of("net1"),
        .baggage = baggage,
        .n_baggage = n_baggage,
    };
}

TEST(a_request_key_has_its_fields_in_order) {
    const struct text baggage[] = {text_of("k=v"), text_of("")};
    const struct key_request request = example(baggage, 2);
    static struct bytes expected;
    uint8_t to[512];
    put_ip(&expected, &SERVICE);
    put_ip(&expected, &POD);
    put_text(&expected, "spiffe://td/ns/a/sa/b");
    put_text(&expected, "10.96.0.1:80");
    put_text(&expected, "shop.example");
    put_number(&expected, 1, 1);
    put_text(&expected, "net1");
    put_number(&expected, 2, 2);
    put_text(&expected, "k=v");
    put_text(&expected, "");

    const size_t len = key_pack_request(&request, to, sizeof(to));

    CHECK_MEM_EQ(to, len, expected.at, expected.len);
    CHECK(len <= key_request_size(&request));
}

TEST(a_request_without_headers_is_packed_too) {
    struct key_request request = {.local = SERVICE, .src = POD, .authority = text_of("a")};
    static struct bytes expected;
    uint8_t to[512];
    put_ip(&expected, &SERVICE);
    put_ip(&expected, &POD);
    put_text(&expected, "");
    put_text(&expected, "a");
    put_text(&expected, "");
    put_number(&expected, 0, 1);
    put_text(&expected, "");
    put_number(&expected, 0, 2);

    CHECK_MEM_EQ(to, key_pack_request(&request, to, sizeof(to)), expected.at, expected.len);
    request.network = text_of("not sent, so it does not count");
    CHECK_MEM_EQ(to, key_pack_request(&request, to, sizeof(to)), expected.at, expected.len);
}

TEST(baggage_that_is_not_visible_ascii_counts_as_unreadable) {
    const char *const bad[] = {"k=\x7f", "k=\xc3\xa4", "k=\x1f"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const struct text baggage[] = {text_of("k=v\twith tab"), text_of(bad[i])};
        const struct key_request request = example(baggage, 2);
        uint8_t to[512];

        const size_t len = key_pack_request(&request, to, sizeof(to));

        CHECK(len > 2);
        CHECK_INT_EQ(to[len - 1], 0xff);
        CHECK_INT_EQ(to[len - 2], 0xff);
    }
}

TEST(a_request_key_fits_exactly_or_not_at_all) {
    const struct text baggage[] = {text_of("k=v")};
    const struct key_request request = example(baggage, 1);
    uint8_t to[512];
    const size_t len = key_pack_request(&request, to, sizeof(to));

    CHECK_INT_EQ(key_pack_request(&request, to, len), len);
    for (size_t size = 0; size < len; size++) {
        CHECK_INT_EQ(key_pack_request(&request, to, size), 0);
    }
}

TEST(a_field_beyond_its_length_is_not_packed) {
    static char long_text[UINT16_MAX + 1];
    static uint8_t to[2 * KEY_MAX];
    memset(long_text, 'x', sizeof(long_text));
    struct key_request request = example(NULL, 0);

    request.authority = (struct text){long_text, UINT16_MAX};
    CHECK(key_pack_request(&request, to, sizeof(to)) > UINT16_MAX);
    request.authority.len = UINT16_MAX + 1;
    CHECK_INT_EQ(key_pack_request(&request, to, sizeof(to)), 0);
}

TEST(a_key_beyond_the_maximum_is_not_packed) {
    static char long_text[KEY_MAX / 2];
    static uint8_t to[2 * KEY_MAX];
    memset(long_text, 'x', sizeof(long_text));
    struct key_request request = example(NULL, 0);
    request.authority = (struct text){long_text, sizeof(long_text)};
    request.network = (struct text){long_text, sizeof(long_text)};

    CHECK_INT_EQ(key_pack_request(&request, to, sizeof(to)), 0);
}

TEST(more_baggage_than_can_be_counted_is_not_packed) {
    static struct text baggage[INT16_MAX + 1];
    static uint8_t to[KEY_MAX];
    struct key_request request = example(baggage, INT16_MAX);

    CHECK(key_pack_request(&request, to, sizeof(to)) > 0);
    request.n_baggage++;
    CHECK_INT_EQ(key_pack_request(&request, to, sizeof(to)), 0);
}

TEST(a_remote_key_has_its_fields_in_order_and_all_of_them_count) {
    const struct text baggage[] = {text_of("k=v"), text_of("")};
    const struct key_request response = {
        .identity = text_of("spiffe://td/ns/a/sa/b"), .baggage = baggage, .n_baggage = 2};
    static struct bytes expected;
    uint8_t to[256], masked[257];
    put_ip(&expected, &SERVICE);
    put_number(&expected, SERVICE.port, 2);
    put_text(&expected, "spiffe://td/ns/a/sa/b");
    put_number(&expected, 2, 2);
    put_text(&expected, "k=v");
    put_text(&expected, "");

    const size_t len = key_pack_remote(&SERVICE, &response, to, sizeof(to));

    CHECK_MEM_EQ(to, len, expected.at, expected.len);
    CHECK(len <= key_request_size(&response));
    CHECK_INT_EQ(key_pack_remote(&SERVICE, &response, to, len - 1), 0);
    CHECK_INT_EQ(key_mask(KEY_REMOTE, to, len, 0, masked), len + 1);
    CHECK_MEM_EQ(masked + 1, len, to, len);
    CHECK_INT_EQ(key_mask(KEY_REMOTE, to, len - 1, 0, masked), 0);
}

/* --- the `forwarded` header */

static void check_host(const char *header, const char *host) {
    const struct text found = key_forwarded_host(text_of(header));
    CHECK_MEM_EQ(found.bytes, found.len, host, strlen(host));
}

TEST(the_first_host_of_forwarded_counts) {
    check_host("host=a", "a");
    check_host("for=1.2.3.4;host=a.b;proto=http", "a.b");
    check_host("for=x; host=a ;x", "a");
    check_host("\t host=a;host=b", "a");
    check_host("for=\"[::1]:1\";host=\"a\"", "a");
    check_host("host=a=b", "a=b");
    check_host("host=;host=b", "");
    check_host("host;host=b", "b");
}

TEST(quotes_are_taken_off_each_side_on_its_own) {
    check_host("host=\"a", "a");
    check_host("host=a\"", "a");
    check_host("host=\"\"a\"\"", "\"a\"");
    check_host("host=\"", "");
    check_host("host=\"\"", "");
}

TEST(other_names_are_not_the_host) {
    check_host("", "");
    check_host(";;;", "");
    check_host("Host=a", "");
    check_host("host =a", "");
    check_host("xhost=a", "");
    check_host("for=host=a", "");
    check_host("host", "");
}

TEST(a_header_that_is_not_ascii_has_no_host) {
    check_host("host=a;x=\xff", "");
}

/* --- masking */

static size_t pack_captured(const struct addr *src, uint8_t *to) {
    return key_pack_captured(src, &SERVICE, to, 64);
}

TEST(a_mask_that_reads_all_keeps_all) {
    uint8_t key[64], masked[65];
    const size_t len = pack_captured(&POD, key);

    const size_t masked_len = key_mask(KEY_OUTBOUND, key, len, KEY_USES_ALL, masked);

    CHECK_INT_EQ(masked[0], KEY_USES_ALL);
    CHECK_MEM_EQ(masked + 1, masked_len - 1, key, len);
}

TEST(keys_that_differ_in_the_source_only_are_one_without_it) {
    uint8_t key[64], masked_a[65], masked_b[65];

    size_t len = pack_captured(&POD, key);
    const size_t a = key_mask(KEY_PASSTHROUGH, key, len, 0, masked_a);
    len = pack_captured(&OTHER_POD, key);
    const size_t b = key_mask(KEY_PASSTHROUGH, key, len, 0, masked_b);

    CHECK_INT_EQ(a, 1 + ADDR_PACKED);
    CHECK_MEM_EQ(masked_a, a, masked_b, b);
}

TEST(an_inbound_mask_leaves_out_what_was_not_read) {
    const struct text baggage[] = {text_of("k=v")};
    struct key_request request = example(baggage, 1);
    uint8_t key[512], masked_a[513], masked_b[513];
    const size_t len = key_pack_request(&request, key, sizeof(key));
    request.src = OTHER_POD;
    request.forwarded = text_of("host=elsewhere");
    request.network = text_of("net2");
    request.n_baggage = 0;
    uint8_t other[512];
    const size_t other_len = key_pack_request(&request, other, sizeof(other));

    for (unsigned uses = 0; uses <= KEY_USES_ALL; uses++) {
        const size_t a = key_mask(KEY_INBOUND, key, len, uses, masked_a);
        const size_t b = key_mask(KEY_INBOUND, other, other_len, uses, masked_b);
        const bool is_equal = a == b && memcmp(masked_a, masked_b, a) == 0;
        CHECK(a > 0 && b > 0);
        CHECK_INT_EQ(is_equal, uses == 0);
    }
}

TEST(identity_authority_and_local_address_always_count) {
    struct key_request request = example(NULL, 0);
    uint8_t key[512], masked_a[513], masked_b[513];
    size_t len = key_pack_request(&request, key, sizeof(key));
    const size_t a = key_mask(KEY_INBOUND, key, len, 0, masked_a);
    struct key_request others[3] = {request, request, request};
    others[0].local = OTHER_POD;
    others[1].identity = text_of("spiffe://td/ns/a/sa/c");
    others[2].authority = text_of("10.96.0.1:81");

    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        len = key_pack_request(&others[i], key, sizeof(key));
        const size_t b = key_mask(KEY_INBOUND, key, len, 0, masked_b);
        CHECK(a != b || memcmp(masked_a, masked_b, a) != 0);
    }
}

TEST(malformed_keys_have_no_mask) {
    const struct text baggage[] = {text_of("k=v"), text_of("x")};
    const struct key_request request = example(baggage, 2);
    uint8_t key[512], masked[513];
    const size_t len = key_pack_request(&request, key, sizeof(key) - 1);

    for (size_t short_len = 0; short_len < len; short_len++) {
        CHECK_INT_EQ(key_mask(KEY_INBOUND, key, short_len, KEY_USES_ALL, masked), 0);
        CHECK_INT_EQ(key_mask(KEY_INBOUND, key, short_len, 0, masked), 0);
    }
    CHECK_INT_EQ(key_mask(KEY_INBOUND, key, len + 1, 0, masked), 0);
    CHECK_INT_EQ(key_mask(KEY_INBOUND, key, len, KEY_USES_ALL + 1, masked), 0);
    CHECK_INT_EQ(key_mask(KEY_OUTBOUND, key, 35, 0, masked), 0);
    CHECK_INT_EQ(key_mask(KEY_OUTBOUND, key, 37, 0, masked), 0);
    CHECK_INT_EQ(key_mask(KEY_KINDS, key, len, 0, masked), 0);
}

TEST(an_identity_key_is_empty) {
    uint8_t masked[2] = {9, 9};

    CHECK_INT_EQ(key_mask(KEY_IDENTITY, NULL, 0, 0, masked), 1);
    CHECK_INT_EQ(masked[0], 0);
    CHECK_INT_EQ(key_mask(KEY_IDENTITY, masked, 1, 0, masked), 0);
}

/* --- hashing */

TEST(the_hash_is_siphash_1_3) {
    /* Made with `openssl mac -macopt c-rounds:1 -macopt d-rounds:3 SIPHASH`. */
    static const struct {
        size_t len;
        uint64_t hash;
    } VECTORS[] = {
        {0, UINT64_C(0xabac0158050fc4dc)},  {1, UINT64_C(0xc9f49bf37d57ca93)},
        {7, UINT64_C(0xd3927d989bb11140)},  {8, UINT64_C(0x369095118d299a8e)},
        {15, UINT64_C(0xd320d86d2a519956)}, {63, UINT64_C(0x9d199062b7bbb3a8)},
    };
    uint8_t seed[16], bytes[64];
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)i;
        seed[i % 16] = (uint8_t)(i % 16);
    }

    for (size_t i = 0; i < ARRAY_LEN(VECTORS); i++) {
        CHECK_INT_EQ(key_hash(seed, bytes, VECTORS[i].len), VECTORS[i].hash);
    }
    CHECK_INT_EQ(key_hash(seed, NULL, 0), VECTORS[0].hash);
}
