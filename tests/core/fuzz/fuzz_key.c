/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes key.c: any bytes may be masked, any request packed, and what is packed can be masked.
 *
 * Input: kind, uses, then the bytes. They are masked as a key; they are read as a `forwarded`
 * header; and cut at newlines they are the fields of a request.
 */
#include <stdlib.h>

#include "key.h"

#define BAGGAGE_MOST 8

static const struct addr CALLED = {.ip = {10, 0, 0, 9}, .port = 80, .family = 4};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void demand(bool is_so) {
    if (!is_so) {
        abort();
    }
}

static struct text next_line(struct text *rest) {
    struct text line = *rest;
    const char *const end = rest->len == 0 ? NULL : memchr(rest->bytes, '\n', rest->len);
    if (end == NULL) {
        *rest = (struct text){0};
    } else {
        line.len = (size_t)(end - rest->bytes);
        *rest = (struct text){end + 1, rest->len - line.len - 1};
    }
    return line;
}

/* What a mask keeps is the key itself if all of it was read, and less otherwise. */
static void mask(enum key_kind kind, const uint8_t *bytes, size_t len, unsigned uses) {
    uint8_t *const masked = malloc(len + 1);
    uint8_t *const whole = malloc(len + 1);
    demand(masked != NULL && whole != NULL);
    const size_t masked_len = key_mask(kind, bytes, len, uses, masked);
    const size_t whole_len = key_mask(kind, bytes, len, KEY_USES_ALL, whole);
    demand((masked_len > 0) == (whole_len > 0 && uses <= KEY_USES_ALL));
    demand(masked_len <= len + 1);
    if (whole_len > 0) {
        demand(whole_len == len + 1 && (len == 0 || memcmp(whole + 1, bytes, len) == 0));
    }
    free(masked);
    free(whole);
}

static void pack(struct text rest, bool has_network) {
    struct text baggage[BAGGAGE_MOST];
    struct key_request request = {
        .local = {.ip = {10, 0, 0, 1}, .family = 4},
        .src = {.ip = {0x20, 1, [15] = 1}, .family = 6},
        .has_network = has_network,
        .baggage = baggage,
    };
    request.identity = next_line(&rest);
    request.authority = next_line(&rest);
    request.forwarded = next_line(&rest);
    request.network = next_line(&rest);
    while (rest.len > 0 && request.n_baggage < BAGGAGE_MOST) {
        baggage[request.n_baggage++] = next_line(&rest);
    }
    const size_t size = key_request_size(&request);
    uint8_t *const key = malloc(size);
    demand(key != NULL);
    const size_t len = key_pack_request(&request, key, size);
    demand(len > 0 && len <= size);
    for (unsigned uses = 0; uses <= KEY_USES_ALL; uses++) {
        mask(KEY_INBOUND, key, len, uses);
    }
    const size_t remote = key_pack_remote(&CALLED, &request, key, size);
    demand(remote > 0 && remote <= size);
    mask(KEY_REMOTE, key, remote, KEY_USES_ALL);
    demand(key_pack_request(&request, key, len) == len);
    demand(key_pack_request(&request, key, len - 1) == 0);
    free(key);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len) {
    if (len < 2) {
        return 0;
    }
    const struct text rest = {(const char *)bytes + 2, len - 2};
    mask((enum key_kind)(bytes[0] % KEY_KINDS), bytes + 2, len - 2, bytes[1]);
    const struct text host = key_forwarded_host(rest);
    demand(host.len == 0 || (host.bytes >= rest.bytes && host.len <= rest.len));
    pack(rest, (bytes[1] & 1) != 0);
    return 0;
}
