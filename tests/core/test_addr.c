/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of addr.c: one form for each address, in sockets, as bytes and as text. */
#include "addr.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "check.h"

static struct addr addr_v4(const char *ip, uint16_t port) {
    struct addr addr = {.family = 4, .port = port};
    CHECK_INT_EQ(inet_pton(AF_INET, ip, addr.ip), 1);
    return addr;
}

static struct addr addr_v6(const char *ip, uint16_t port) {
    struct addr addr = {.family = 6, .port = port};
    CHECK_INT_EQ(inet_pton(AF_INET6, ip, addr.ip), 1);
    return addr;
}

static struct addr back(const struct sockaddr_storage *storage) {
    return addr_from_sockaddr((const struct sockaddr *)(const void *)storage);
}

TEST(ipv4_goes_through_a_sockaddr_and_back) {
    const struct addr addr = addr_v4("10.1.2.3", 15008);
    struct sockaddr_storage storage;

    const socklen_t len = addr_to_sockaddr(&addr, false, &storage);
    const struct addr again = back(&storage);

    CHECK_INT_EQ(len, sizeof(struct sockaddr_in));
    CHECK_INT_EQ(storage.ss_family, AF_INET);
    CHECK(addr_equal(&addr, &again));
    CHECK_MEM_EQ(&addr, sizeof(addr), &again, sizeof(again));
}

TEST(ipv6_goes_through_a_sockaddr_and_back) {
    const struct addr addr = addr_v6("2001:db8::1", 443);
    struct sockaddr_storage storage;

    const socklen_t len = addr_to_sockaddr(&addr, true, &storage);
    const struct addr again = back(&storage);

    CHECK_INT_EQ(len, sizeof(struct sockaddr_in6));
    CHECK_MEM_EQ(&addr, sizeof(addr), &again, sizeof(again));
}

TEST(mapped_ipv4_is_ipv4) {
    const struct addr addr = addr_v4("192.0.2.7", 80);
    struct sockaddr_storage storage;

    const socklen_t len = addr_to_sockaddr(&addr, true, &storage);
    const struct addr again = back(&storage);

    CHECK_INT_EQ(len, sizeof(struct sockaddr_in6));
    CHECK_INT_EQ(storage.ss_family, AF_INET6);
    CHECK_MEM_EQ(&addr, sizeof(addr), &again, sizeof(again));
}

TEST(a_sockaddr_of_another_family_is_no_address) {
    const struct sockaddr other = {.sa_family = AF_UNIX};

    const struct addr addr = addr_from_sockaddr(&other);

    CHECK_INT_EQ(addr.family, 0);
}

TEST(equality_is_of_address_and_port) {
    const struct addr a = addr_v4("10.0.0.1", 80);
    const struct addr other_port = addr_v4("10.0.0.1", 81);
    const struct addr other_ip = addr_v4("10.0.0.2", 80);
    struct addr other_family = addr_v6("::", 80);
    memcpy(other_family.ip, a.ip, sizeof(a.ip));

    CHECK(addr_equal(&a, &a));
    CHECK(!addr_equal(&a, &other_port));
    CHECK(addr_same_ip(&a, &other_port));
    CHECK(!addr_same_ip(&a, &other_ip));
    CHECK(!addr_same_ip(&a, &other_family));
}

TEST(loopback_is_all_of_127_and_one_of_ipv6) {
    const struct addr yes[] = {addr_v4("127.0.0.1", 1), addr_v4("127.9.9.9", 1), addr_v6("::1", 1)};
    const struct addr no[] = {addr_v4("128.0.0.1", 1), addr_v6("::2", 1), addr_v6("7f00::", 1)};

    for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
        CHECK(addr_is_loopback(&yes[i]));
        CHECK(!addr_is_loopback(&no[i]));
    }
}

TEST(text_is_what_people_write) {
    const struct addr v4 = addr_v4("10.1.2.3", 15008);
    const struct addr v6 = addr_v6("2001:db8::1", 65535);
    const struct addr none = {0};
    char text[ADDR_TEXT_SIZE];

    CHECK_INT_EQ(addr_format(&v4, text), strlen("10.1.2.3:15008"));
    CHECK_STR_EQ(text, "10.1.2.3:15008");
    CHECK_INT_EQ(addr_format(&v6, text), strlen("[2001:db8::1]:65535"));
    CHECK_STR_EQ(text, "[2001:db8::1]:65535");
    CHECK_INT_EQ(addr_format_ip(&v4, text), strlen("10.1.2.3"));
    CHECK_STR_EQ(text, "10.1.2.3");
    CHECK_INT_EQ(addr_format_ip(&none, text), 1);
    CHECK_STR_EQ(text, "-");
}

TEST(the_longest_text_fits) {
    const struct addr addr = addr_v6("1234:5678:9abc:def0:1234:5678:9abc:def0", 65535);
    char text[ADDR_TEXT_SIZE];

    const size_t len = addr_format(&addr, text);

    CHECK_INT_EQ(len, strlen(text));
    CHECK_STR_EQ(text, "[1234:5678:9abc:def0:1234:5678:9abc:def0]:65535");
}

TEST(packed_bytes_are_family_ip_and_little_endian_port) {
    const struct addr addr = addr_v4("1.2.3.4", 0x1234);
    const uint8_t expected[ADDR_PACKED] = {4, 1, 2, 3, 4, 0, 0, 0,    0,   0,
                                           0, 0, 0, 0, 0, 0, 0, 0x34, 0x12};
    uint8_t bytes[ADDR_PACKED];
    struct addr again = {0};

    CHECK(addr_pack(&addr, bytes) == bytes + ADDR_PACKED);
    CHECK_MEM_EQ(bytes, sizeof(bytes), expected, sizeof(expected));
    CHECK(addr_unpack(bytes, &again));
    CHECK_MEM_EQ(&addr, sizeof(addr), &again, sizeof(again));
}

TEST(bytes_of_no_address_or_of_an_unusual_form_are_refused) {
    const struct addr v4 = addr_v4("1.2.3.4", 1);
    const struct addr mapped = addr_v6("::ffff:1.2.3.4", 1);
    const struct addr before = addr_v4("9.9.9.9", 9);
    struct addr to = before;
    uint8_t bytes[ADDR_PACKED];

    (void)addr_pack(&v4, bytes);
    bytes[5] = 1;
    CHECK(!addr_unpack(bytes, &to));
    bytes[5] = 0;
    bytes[0] = 0;
    CHECK(!addr_unpack(bytes, &to));
    bytes[0] = 5;
    CHECK(!addr_unpack(bytes, &to));
    (void)addr_pack(&mapped, bytes);
    CHECK(!addr_unpack(bytes, &to));
    CHECK(addr_equal(&to, &before));
}
