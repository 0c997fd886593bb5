/* SPDX-License-Identifier: Apache-2.0 */
/* The PROXY v2 header; see preface.h. */
#include "preface.h"

#define VERSION_PROXY 0x21
#define UNSPECIFIED 0x01
#define TCP4 0x11
#define TCP6 0x21
#define TLV_PRINCIPAL 0xd0

static const uint8_t SIGNATURE[12] = "\r\n\r\n\0\r\nQUIT\n";

static uint8_t *put(uint8_t *to, const void *bytes, size_t len) {
    memcpy(to, bytes, len);
    return to + len;
}

/* Numbers of this header are big endian. */
static uint8_t *put_u16(uint8_t *to, size_t n) {
    to[0] = (uint8_t)(n >> 8 & 0xff);
    to[1] = (uint8_t)(n & 0xff);
    return to + 2;
}

size_t preface_proxy_v2(const struct addr *source, const struct addr *target, struct text identity,
                        uint8_t *to, size_t size) {
    const bool is_said = source->family == target->family && source->family != 0;
    const bool is_v6 = source->family == 6;
    const size_t ip_len = is_v6 ? 16 : 4;
    const size_t addresses = is_said ? 2 * ip_len + 4 : 0;
    const size_t tlv = identity.len == 0 ? 0 : 3 + identity.len;
    if (identity.len > UINT16_MAX || addresses + tlv > UINT16_MAX ||
        sizeof(SIGNATURE) + 4 + addresses + tlv > size) {
        return 0;
    }
    uint8_t *at = put(to, SIGNATURE, sizeof(SIGNATURE));
    *at++ = VERSION_PROXY;
    *at++ = !is_said ? UNSPECIFIED : is_v6 ? TCP6 : TCP4;
    at = put_u16(at, addresses + tlv);
    if (is_said) {
        at = put(at, source->ip, ip_len);
        at = put(at, target->ip, ip_len);
        at = put_u16(at, source->port);
        at = put_u16(at, target->port);
    }
    if (tlv > 0) {
        *at++ = TLV_PRINCIPAL;
        at = put_u16(at, identity.len);
        at = put(at, identity.bytes, identity.len);
    }
    return (size_t)(at - to);
}
