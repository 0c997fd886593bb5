/* SPDX-License-Identifier: Apache-2.0 */
/* Packing, masking and hashing of keys; see key.h. */
#include "key.h"

/* --- packing */

/* Writes into bounded memory; what does not fit makes it fail for good. */
struct writer {
    uint8_t *at;
    size_t left;
    bool has_failed;
};

static void write_bytes(struct writer *writer, const void *bytes, size_t len) {
    if (writer->has_failed || len > writer->left) {
        writer->has_failed = true;
        return;
    }
    if (len > 0) {
        memcpy(writer->at, bytes, len);
    }
    writer->at += len;
    writer->left -= len;
}

static void write_u16(struct writer *writer, unsigned n) {
    const uint8_t bytes[2] = {(uint8_t)(n & 0xff), (uint8_t)(n >> 8 & 0xff)};
    write_bytes(writer, bytes, sizeof(bytes));
}

static void write_text(struct writer *writer, struct text text) {
    if (text.len > UINT16_MAX) {
        writer->has_failed = true;
        return;
    }
    write_u16(writer, (unsigned)text.len);
    write_bytes(writer, text.bytes, text.len);
}

static void write_ip(struct writer *writer, const struct addr *addr) {
    uint8_t bytes[ADDR_IP_PACKED] = {0};
    (void)addr_pack_ip(addr, bytes); /* its end is known */
    write_bytes(writer, bytes, sizeof(bytes));
}

/* How much was written, 0 if it did not fit. */
static size_t written(const struct writer *writer, const uint8_t *start) {
    return writer->has_failed ? 0 : (size_t)(writer->at - start);
}

size_t key_pack_captured(const struct addr *src, const struct addr *dst, uint8_t *to, size_t size) {
    struct writer writer = {.at = to, .left = size};
    uint8_t bytes[ADDR_PACKED] = {0};
    (void)addr_pack(dst, bytes); /* its end is known */
    write_ip(&writer, src);
    write_bytes(&writer, bytes, sizeof(bytes));
    return written(&writer, to);
}

/* Only visible ASCII and tab: what a header value may be made of to be read as text. */
static bool is_visible(struct text text) {
    for (size_t i = 0; i < text.len; i++) {
        const char c = text.bytes[i];
        if (c != '\t' && (c < ' ' || c > '~')) {
            return false;
        }
    }
    return true;
}

static void write_baggage(struct writer *writer, const struct key_request *request) {
    if (request->n_baggage > INT16_MAX) {
        writer->has_failed = true;
        return;
    }
    for (size_t i = 0; i < request->n_baggage; i++) {
        if (!is_visible(request->baggage[i])) {
            write_u16(writer, UINT16_MAX); /* -1 */
            return;
        }
    }
    write_u16(writer, (unsigned)request->n_baggage);
    for (size_t i = 0; i < request->n_baggage; i++) {
        write_text(writer, request->baggage[i]);
    }
}

size_t key_pack_request(const struct key_request *request, uint8_t *to, size_t size) {
    struct writer writer = {.at = to, .left = size < KEY_MAX ? size : KEY_MAX};
    const uint8_t has_network = request->has_network ? 1 : 0;
    write_ip(&writer, &request->local);
    write_ip(&writer, &request->src);
    write_text(&writer, request->identity);
    write_text(&writer, request->authority);
    write_text(&writer, key_forwarded_host(request->forwarded));
    write_bytes(&writer, &has_network, sizeof(has_network));
    write_text(&writer, request->has_network ? request->network : (struct text){0});
    write_baggage(&writer, request);
    return written(&writer, to);
}

size_t key_pack_remote(const struct addr *dst, const struct key_request *response, uint8_t *to,
                       size_t size) {
    struct writer writer = {.at = to, .left = size < KEY_MAX ? size : KEY_MAX};
    uint8_t bytes[ADDR_PACKED] = {0};
    (void)addr_pack(dst, bytes); /* its end is known */
    write_bytes(&writer, bytes, sizeof(bytes));
    write_text(&writer, response->identity);
    write_baggage(&writer, response);
    return written(&writer, to);
}

size_t key_request_size(const struct key_request *request) {
    size_t size = (size_t)2 * ADDR_IP_PACKED + 1 + (size_t)2 * 5;
    size += request->identity.len + request->authority.len + request->forwarded.len;
    size += request->has_network ? request->network.len : 0;
    for (size_t i = 0; i < request->n_baggage; i++) {
        size += 2 + request->baggage[i].len;
    }
    return size;
}

/* --- the `forwarded` header */

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
}

static bool is_ascii(struct text text) {
    for (size_t i = 0; i < text.len; i++) {
        if ((uint8_t)text.bytes[i] > 0x7f) {
            return false;
        }
    }
    return true;
}

static struct text trim(struct text text) {
    while (text.len > 0 && is_space(text.bytes[0])) {
        text.bytes++;
        text.len--;
    }
    while (text.len > 0 && is_space(text.bytes[text.len - 1])) {
        text.len--;
    }
    return text;
}

/* Cuts `*rest` at the first `separator`, which belongs to neither side. Without one, the rest is
 * without bytes afterwards (`bytes` NULL). */
static struct text cut(struct text *rest, char separator) {
    const char *const at = rest->len == 0 ? NULL : memchr(rest->bytes, separator, rest->len);
    struct text head = *rest;
    if (at == NULL) {
        *rest = (struct text){0};
        return head;
    }
    head.len = (size_t)(at - rest->bytes);
    rest->bytes = at + 1;
    rest->len -= head.len + 1;
    return head;
}

static struct text unquote(struct text text) {
    if (text.len > 0 && text.bytes[0] == '"') {
        text.bytes++;
        text.len--;
    }
    if (text.len > 0 && text.bytes[text.len - 1] == '"') {
        text.len--;
    }
    return text;
}

struct text key_forwarded_host(struct text header) {
    if (!is_ascii(header)) {
        return (struct text){0};
    }
    struct text rest = header;
    while (rest.bytes != NULL) {
        struct text value = trim(cut(&rest, ';'));
        const struct text name = cut(&value, '=');
        if (value.bytes != NULL && text_equal(name, text_of("host"))) {
            return unquote(value);
        }
    }
    return (struct text){0};
}

/* --- masking */

/* Reads a packed key; what is too short makes it fail for good. */
struct reader {
    const uint8_t *at;
    size_t left;
    bool has_failed;
};

static struct text read_bytes(struct reader *reader, size_t len) {
    if (reader->has_failed || len > reader->left) {
        reader->has_failed = true;
        return (struct text){0};
    }
    const struct text field = {(const char *)reader->at, len};
    reader->at += len;
    reader->left -= len;
    return field;
}

static unsigned read_u16(struct reader *reader) {
    const struct text field = read_bytes(reader, 2);
    if (field.bytes == NULL) {
        return 0;
    }
    return (uint8_t)field.bytes[0] | (unsigned)(uint8_t)field.bytes[1] << 8;
}

/* A str16 with its length in front. */
static struct text read_text(struct reader *reader) {
    const char *const start = (const char *)reader->at;
    const struct text field = read_bytes(reader, read_u16(reader));
    return (struct text){start, reader->has_failed ? 0 : field.len + 2};
}

/* All that was read since `start`. */
static struct text since(const struct reader *reader, const char *start) {
    return (struct text){start,
                         reader->has_failed ? 0 : (size_t)((const char *)reader->at - start)};
}

static struct text read_baggage(struct reader *reader) {
    const char *const start = (const char *)reader->at;
    const unsigned count = read_u16(reader);
    const unsigned n = count == UINT16_MAX ? 0 : count;
    if (n > INT16_MAX) {
        reader->has_failed = true;
    }
    for (unsigned i = 0; i < n && !reader->has_failed; i++) {
        (void)read_text(reader); /* only its length counts */
    }
    return since(reader, start);
}

/* Network and baggage, checked and taken together. */
static struct text read_claims(struct reader *reader) {
    const char *const start = (const char *)reader->at;
    const struct text has_network = read_bytes(reader, 1);
    const struct text network = read_text(reader);
    if (reader->has_failed || (uint8_t)has_network.bytes[0] > 1 ||
        (has_network.bytes[0] == 0 && network.len > 2)) {
        reader->has_failed = true;
        return (struct text){0};
    }
    (void)read_baggage(reader);
    return since(reader, start);
}

static void keep(struct writer *writer, struct text field, bool is_kept) {
    if (is_kept) {
        write_bytes(writer, field.bytes, field.len);
    }
}

static void mask_request(struct reader *reader, struct writer *writer, unsigned uses) {
    keep(writer, read_bytes(reader, ADDR_IP_PACKED), true); /* local */
    keep(writer, read_bytes(reader, ADDR_IP_PACKED), (uses & KEY_USES_SOURCE) != 0);
    keep(writer, read_text(reader), true); /* identity */
    keep(writer, read_text(reader), true); /* authority */
    keep(writer, read_text(reader), (uses & KEY_USES_HOST) != 0);
    keep(writer, read_claims(reader), (uses & KEY_USES_CLAIMS) != 0);
}

size_t key_mask(enum key_kind kind, const uint8_t *bytes, size_t len, unsigned uses, uint8_t *to) {
    struct reader reader = {.at = bytes, .left = len};
    struct writer writer = {.at = to, .left = len + 1};
    const uint8_t first = (uint8_t)uses;
    if (uses > KEY_USES_ALL) {
        return 0;
    }
    write_bytes(&writer, &first, sizeof(first));
    switch (kind) {
    case KEY_OUTBOUND:
    case KEY_PASSTHROUGH:
        keep(&writer, read_bytes(&reader, ADDR_IP_PACKED), (uses & KEY_USES_SOURCE) != 0);
        keep(&writer, read_bytes(&reader, ADDR_PACKED), true);
        break;
    case KEY_INBOUND:
        mask_request(&reader, &writer, uses);
        break;
    case KEY_IDENTITY:
        break;
    case KEY_REMOTE:
        keep(&writer, read_bytes(&reader, ADDR_PACKED), true);
        keep(&writer, read_text(&reader), true);
        keep(&writer, read_baggage(&reader), true);
        break;
    case KEY_KINDS:
        return 0;
    }
    return reader.has_failed || reader.left != 0 ? 0 : written(&writer, to);
}

/* --- hashing */

static uint64_t rotate(uint64_t word, unsigned bits) {
    return word << bits | word >> (64 - bits);
}

static uint64_t read_le(const uint8_t *from, size_t len) {
    uint64_t word = 0;
    for (size_t i = 0; i < len; i++) {
        word |= (uint64_t)from[i] << (8 * i);
    }
    return word;
}

static void sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static void sip_absorb(uint64_t v[4], uint64_t word) {
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
}

uint64_t key_hash(const uint8_t seed[16], const uint8_t *bytes, size_t len) {
    const uint64_t k0 = read_le(seed, 8);
    const uint64_t k1 = read_le(seed + 8, 8);
    uint64_t v[4] = {
        k0 ^ UINT64_C(0x736f6d6570736575),
        k1 ^ UINT64_C(0x646f72616e646f6d),
        k0 ^ UINT64_C(0x6c7967656e657261),
        k1 ^ UINT64_C(0x7465646279746573),
    };
    const size_t tail = len % 8;
    for (size_t i = 0; i < len - tail; i += 8) {
        sip_absorb(v, read_le(bytes + i, 8));
    }
    sip_absorb(v, (uint64_t)len << 56 | (tail == 0 ? 0 : read_le(bytes + len - tail, tail)));
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
