/* SPDX-License-Identifier: Apache-2.0 */
/* Keys: what a decision may depend on, as bytes.
 *
 * A key is packed once per connection. The same bytes are the question that Python unpacks, the
 * identity of a flow in the cache, and what `live_keys` reports. Numbers are little endian; str16
 * is a 16-bit length and that many bytes.
 *
 *   OUTBOUND, PASSTHROUGH   src ip (ADDR_IP_PACKED), dst (ADDR_PACKED)
 *   INBOUND                 local ip, src ip (ADDR_IP_PACKED each)
 *                           identity str16 (the client's SPIFFE id; empty: none)
 *                           authority str16
 *                           forwarded host str16 (empty: none)
 *                           has network (1 byte), network str16
 *                           baggage count (int16; -1: one of them is not visible ASCII, and no
 *                           values follow), values str16 each
 *   IDENTITY                nothing
 *   REMOTE                  dst (ADDR_PACKED), identity str16, baggage as above: who has answered
 *                           at the end of an inner tunnel
 *
 * In the cache a key is *masked*: fields that the decision did not read are left out, so that one
 * flow serves many keys. `uses` says which fields were read.
 */
#ifndef ZT_KEY_H
#define ZT_KEY_H

#include "addr.h"

enum key_kind {
    KEY_OUTBOUND,
    KEY_INBOUND,
    KEY_PASSTHROUGH,
    KEY_IDENTITY,
    KEY_REMOTE,
    KEY_KINDS,
};

/* Groups of fields that a decision may leave unread; all others always count. */
enum key_use {
    KEY_USES_SOURCE = 1, /* src ip */
    KEY_USES_HOST = 2,   /* forwarded host (INBOUND) */
    KEY_USES_CLAIMS = 4, /* network and baggage (INBOUND) */
    KEY_USES_ALL = 7,
};

#define KEY_MAX (96 * 1024) /* bytes of a packed key: header lists are bounded below that */

struct key {
    uint8_t *bytes; /* owned by whoever packed it, see below */
    size_t len;
};

/* What an INBOUND key is packed from. Texts point into the request's headers. */
struct key_request {
    struct addr local;
    struct addr src;
    struct text identity;
    struct text authority;
    struct text forwarded; /* the whole header's value; the host is read from it */
    bool has_network;
    struct text network;
    const struct text *baggage; /* values of all baggage headers, in order */
    size_t n_baggage;
};

/* Packs into `to`, which has `size` bytes. Returns the length, 0 if it does not fit. */
size_t key_pack_captured(const struct addr *src, const struct addr *dst, uint8_t *to, size_t size);
size_t key_pack_request(const struct key_request *request, uint8_t *to, size_t size);

/* The same for REMOTE: identity and baggage are those of the server, `dst` is what was called. */
size_t key_pack_remote(const struct addr *dst, const struct key_request *response, uint8_t *to,
                       size_t size);

/* Bytes that `key_pack_request` or `key_pack_remote` needs at most. */
size_t key_request_size(const struct key_request *request);

/* The host of a `forwarded` header: parts split at ';' and trimmed, name exactly `host`, quotes
 * taken off; empty if there is none or the header is not ASCII. The first such part counts. */
struct text key_forwarded_host(struct text header);

/* Writes the masked form of a packed key (first `uses`, then the fields that it keeps) to `to`,
 * which has `len` + 1 bytes at least. Returns its length, 0 if the key is malformed. */
size_t key_mask(enum key_kind kind, const uint8_t *bytes, size_t len, unsigned uses, uint8_t *to);

/* A keyed hash (SipHash-1-3): clients choose parts of keys, and must not choose buckets. */
uint64_t key_hash(const uint8_t seed[16], const uint8_t *bytes, size_t len);

#endif
