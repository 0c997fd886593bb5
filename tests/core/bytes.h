/* SPDX-License-Identifier: Apache-2.0 */
/* Packed bytes for tests: what Python would send, written piece by piece. */
#ifndef ZT_BYTES_H
#define ZT_BYTES_H

#include <stdlib.h>

#include "addr.h"

struct bytes {
    uint8_t at[64 * 1024];
    size_t len;
};

static inline void put_raw(struct bytes *bytes, const void *from, size_t len) {
    if (len > sizeof(bytes->at) - bytes->len) {
        abort(); /* a test that writes too much is wrong */
    }
    if (len > 0) {
        memcpy(bytes->at + bytes->len, from, len);
    }
    bytes->len += len;
}

/* A little endian number of `len` bytes. */
static inline void put_number(struct bytes *bytes, uint64_t number, size_t len) {
    for (size_t i = 0; i < len; i++) {
        const uint8_t byte = (uint8_t)(number >> (8 * i) & 0xff);
        put_raw(bytes, &byte, 1);
    }
}

/* A str16. */
static inline void put_text(struct bytes *bytes, const char *text) {
    put_number(bytes, strlen(text), 2);
    put_raw(bytes, text, strlen(text));
}

static inline void put_addr(struct bytes *bytes, const struct addr *addr) {
    uint8_t packed[ADDR_PACKED];
    (void)addr_pack(addr, packed); /* its end is known */
    put_raw(bytes, packed, sizeof(packed));
}

static inline void put_ip(struct bytes *bytes, const struct addr *addr) {
    uint8_t packed[ADDR_IP_PACKED];
    (void)addr_pack_ip(addr, packed); /* its end is known */
    put_raw(bytes, packed, sizeof(packed));
}

#endif
