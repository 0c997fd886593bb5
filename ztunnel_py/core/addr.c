/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as values; see addr.h. */
#include "addr.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>

/* What an IPv4 address looks like inside an IPv6 socket: ::ffff:a.b.c.d. */
static const uint8_t MAPPED_PREFIX[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

struct addr addr_from_sockaddr(const struct sockaddr *from) {
    struct addr addr = {0};
    if (from->sa_family == AF_INET) {
        struct sockaddr_in in = {0};
        memcpy(&in, from, sizeof(in));
        memcpy(addr.ip, &in.sin_addr, 4);
        addr.port = ntohs(in.sin_port);
        addr.family = 4;
    } else if (from->sa_family == AF_INET6) {
        struct sockaddr_in6 in6 = {0};
        memcpy(&in6, from, sizeof(in6));
        const uint8_t *const ip = in6.sin6_addr.s6_addr;
        const bool is_mapped = memcmp(ip, MAPPED_PREFIX, sizeof(MAPPED_PREFIX)) == 0;
        addr.family = is_mapped ? 4 : 6;
        memcpy(addr.ip, is_mapped ? ip + sizeof(MAPPED_PREFIX) : ip, is_mapped ? 4 : 16);
        addr.port = ntohs(in6.sin6_port);
    }
    return addr;
}

socklen_t addr_to_sockaddr(const struct addr *from, bool as_v6, struct sockaddr_storage *to) {
    memset(to, 0, sizeof(*to));
    if (from->family == 4 && !as_v6) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(from->port)};
        memcpy(&in.sin_addr, from->ip, 4);
        memcpy(to, &in, sizeof(in));
        return sizeof(in);
    }
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(from->port)};
    if (from->family == 4) {
        memcpy(in6.sin6_addr.s6_addr, MAPPED_PREFIX, sizeof(MAPPED_PREFIX));
        memcpy(in6.sin6_addr.s6_addr + sizeof(MAPPED_PREFIX), from->ip, 4);
    } else {
        memcpy(in6.sin6_addr.s6_addr, from->ip, 16);
    }
    memcpy(to, &in6, sizeof(in6));
    return sizeof(in6);
}

bool addr_equal(const struct addr *a, const struct addr *b) {
    return addr_same_ip(a, b) && a->port == b->port;
}

bool addr_same_ip(const struct addr *a, const struct addr *b) {
    return a->family == b->family && memcmp(a->ip, b->ip, sizeof(a->ip)) == 0;
}

bool addr_is_loopback(const struct addr *addr) {
    if (addr->family == 4) {
        return addr->ip[0] == 127;
    }
    return addr->family == 6 && memcmp(addr->ip, &in6addr_loopback, 16) == 0;
}

/* Cuts what snprintf says it would have written to what it wrote. */
static size_t written(int n) {
    return n < 0 ? 0 : n < ADDR_TEXT_SIZE ? (size_t)n : ADDR_TEXT_SIZE - 1;
}

size_t addr_format(const struct addr *addr, char text[ADDR_TEXT_SIZE]) {
    char ip[ADDR_TEXT_SIZE] = "";
    (void)addr_format_ip(addr, ip); /* its length is not needed here */
    const char *const format = addr->family == 6 ? "[%.46s]:%u" : "%.46s:%u";
    return written(snprintf(text, ADDR_TEXT_SIZE, format, ip, (unsigned)addr->port));
}

size_t addr_format_ip(const struct addr *addr, char text[ADDR_TEXT_SIZE]) {
    const int family = addr->family == 4 ? AF_INET : AF_INET6;
    if (addr->family == 0 || inet_ntop(family, addr->ip, text, ADDR_TEXT_SIZE) == NULL) {
        memcpy(text, "-", sizeof("-"));
    }
    return strlen(text);
}

uint8_t *addr_pack(const struct addr *addr, uint8_t *to) {
    uint8_t *const port = addr_pack_ip(addr, to);
    port[0] = (uint8_t)(addr->port & 0xff);
    port[1] = (uint8_t)(addr->port >> 8);
    return port + 2;
}

uint8_t *addr_pack_ip(const struct addr *addr, uint8_t *to) {
    to[0] = addr->family;
    memcpy(to + 1, addr->ip, sizeof(addr->ip));
    return to + ADDR_IP_PACKED;
}

bool addr_unpack(const uint8_t *from, struct addr *to) {
    static const uint8_t ZEROS[12];
    struct addr addr = {.family = from[0]};
    memcpy(addr.ip, from + 1, sizeof(addr.ip));
    addr.port = (uint16_t)(from[ADDR_IP_PACKED] | (from[ADDR_IP_PACKED + 1] << 8));
    if (addr.family == 4) {
        if (memcmp(addr.ip + 4, ZEROS, sizeof(ZEROS)) != 0) {
            return false;
        }
    } else if (addr.family != 6 || memcmp(addr.ip, MAPPED_PREFIX, sizeof(MAPPED_PREFIX)) == 0) {
        return false;
    }
    *to = addr;
    return true;
}
