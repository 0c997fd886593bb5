/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as values: one canonical form, so that equal addresses are equal bytes. */
#ifndef ZT_ADDR_H
#define ZT_ADDR_H

#include <sys/socket.h>

#include "base.h"

#define ADDR_TEXT_SIZE 56 /* "[ipv6]:port" and its NUL */

/* IP address and port. IPv4 uses the first four bytes of `ip`, the rest is zero; an IPv4-mapped
 * IPv6 address does not occur. Packed form: family (1 byte: 4 or 6, 0 is "none"), ip (16 bytes),
 * port (2 bytes, little endian). */
struct addr {
    uint8_t ip[16];
    uint16_t port;   /* host order */
    uint8_t family;  /* 4, 6, or 0 for no address */
    uint8_t padding; /* zero */
};

#define ADDR_PACKED 19    /* bytes of a packed address */
#define ADDR_IP_PACKED 17 /* the same without its port */

/* The canonical address in a sockaddr; family 0 if it is neither IPv4 nor IPv6. */
struct addr addr_from_sockaddr(const struct sockaddr *from);

/* Fills `to` for the socket calls; returns its length. `as_v6` maps IPv4 into IPv6. */
socklen_t addr_to_sockaddr(const struct addr *from, bool as_v6, struct sockaddr_storage *to);

/* Equal address and port. */
bool addr_equal(const struct addr *a, const struct addr *b);

/* Equal address, whatever the ports. */
bool addr_same_ip(const struct addr *a, const struct addr *b);

/* 127.0.0.0/8 or ::1. */
bool addr_is_loopback(const struct addr *addr);

/* `ip:port` or `[ip]:port`, terminated; returns its length. No address is `-:port`. */
size_t addr_format(const struct addr *addr, char text[ADDR_TEXT_SIZE]);

/* `ip`, terminated; returns its length. No address is `-`. */
size_t addr_format_ip(const struct addr *addr, char text[ADDR_TEXT_SIZE]);

/* Writes ADDR_PACKED (or ADDR_IP_PACKED) bytes and returns their end. */
uint8_t *addr_pack(const struct addr *addr, uint8_t *to);
uint8_t *addr_pack_ip(const struct addr *addr, uint8_t *to);

/* Reads ADDR_PACKED bytes. False, and `to` is as it was, if they are not canonical: the family is
 * not 4 or 6, the tail of an IPv4 address is not zero, or an IPv6 address maps an IPv4 one. */
bool addr_unpack(const uint8_t *from, struct addr *to);

#endif
