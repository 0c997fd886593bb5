/* SPDX-License-Identifier: Apache-2.0 */
/* See h2_request.h. */
#include "h2_request.h"

struct h2_request *h2_request_create(struct mem *mem) {
    return mem_alloc(mem, MEM_OTHER, sizeof(struct h2_request));
}

static bool grow_bytes(struct mem *mem, struct h2_request *request, size_t need) {
    size_t size = request->size == 0 ? 512 : request->size;
    while (size < need) {
        size *= 2;
    }
    char *const grown = mem_alloc(mem, MEM_OTHER, size);
    if (grown == NULL) {
        return false;
    }
    const char *const old = request->bytes;
    struct text *const texts[] = {&request->method, &request->authority, &request->forwarded,
                                  &request->network};
    if (old != NULL) {
        memcpy(grown, old, request->len);
        for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
            if (texts[i]->bytes != NULL) {
                texts[i]->bytes = grown + (texts[i]->bytes - old);
            }
        }
        for (size_t i = 0; i < request->n_baggage; i++) {
            request->baggage[i].bytes = grown + (request->baggage[i].bytes - old);
        }
    }
    mem_free(mem, MEM_OTHER, request->bytes);
    request->bytes = grown;
    request->size = size;
    return true;
}

static bool keep_text(struct mem *mem, struct h2_request *request, struct text value,
                      struct text *to) {
    if (request->len + value.len > request->size &&
        !grow_bytes(mem, request, request->len + value.len)) {
        return false;
    }
    if (request->bytes == NULL && !grow_bytes(mem, request, 1)) {
        return false;
    }
    char *const at = request->bytes + request->len;
    if (value.len > 0) {
        memcpy(at, value.bytes, value.len);
    }
    request->len += value.len;
    *to = (struct text){at, value.len};
    return true;
}

static bool keep_baggage(struct mem *mem, struct h2_request *request, struct text value) {
    if (request->n_baggage == request->baggage_size) {
        const size_t size = request->baggage_size == 0 ? 2 : 2 * request->baggage_size;
        struct text *const grown = mem_alloc(mem, MEM_OTHER, size * sizeof(*grown));
        if (grown == NULL) {
            return false;
        }
        if (request->n_baggage > 0) {
            memcpy(grown, request->baggage, request->n_baggage * sizeof(*grown));
        }
        mem_free(mem, MEM_OTHER, request->baggage);
        request->baggage = grown;
        request->baggage_size = size;
    }
    if (!keep_text(mem, request, value, &request->baggage[request->n_baggage])) {
        return false;
    }
    request->n_baggage++;
    return true;
}

/* Keeps the first of several. */
static bool keep_once(struct mem *mem, struct h2_request *request, struct text value,
                      struct text *to, bool *has) {
    if (*has) {
        return true;
    }
    *has = keep_text(mem, request, value, to);
    return *has;
}

bool h2_request_add(struct mem *mem, struct h2_request *request, struct text name,
                    struct text value) {
    if (text_equal(name, text_of(":method"))) {
        return keep_once(mem, request, value, &request->method, &request->has_method);
    }
    if (text_equal(name, text_of(":authority"))) {
        return keep_once(mem, request, value, &request->authority, &request->has_authority);
    }
    if (text_equal(name, text_of("forwarded"))) {
        return keep_once(mem, request, value, &request->forwarded, &request->has_forwarded);
    }
    if (text_equal(name, text_of("x-forwarded-network"))) {
        return keep_once(mem, request, value, &request->network, &request->has_network);
    }
    if (text_equal(name, text_of("traceparent"))) {
        if (!request->has_trace) {
            (void)trace_parse(value, &request->trace); /* malformed: as if there was none */
            request->has_trace = true;
        }
        return true;
    }
    if (text_equal(name, text_of("baggage"))) {
        return keep_baggage(mem, request, value);
    }
    return true;
}

void h2_request_free(struct mem *mem, struct h2_request *request) {
    if (request != NULL) {
        mem_free(mem, MEM_OTHER, request->bytes);
        mem_free(mem, MEM_OTHER, request->baggage);
        mem_free(mem, MEM_OTHER, request);
    }
}
