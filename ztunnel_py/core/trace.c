/* SPDX-License-Identifier: Apache-2.0 */
/* See trace.h. */
#include "trace.h"

#define ID_AT 3
#define SPAN_AT (ID_AT + TRACE_DIGITS + 1)
#define FLAGS_AT (SPAN_AT + SPAN_DIGITS + 1)

static const char DIGITS[] = "0123456789abcdef";

void trace_hex(uint64_t number, char to[SPAN_DIGITS]) {
    for (size_t i = SPAN_DIGITS; i-- > 0; number >>= 4) {
        to[i] = DIGITS[number & 15];
    }
}

void trace_format(const struct trace *trace, char to[TRACE_SIZE]) {
    memcpy(to, "00-", ID_AT);
    trace_hex(trace->high, &to[ID_AT]);
    trace_hex(trace->low, &to[ID_AT + SPAN_DIGITS]);
    to[SPAN_AT - 1] = '-';
    trace_hex(trace->span, &to[SPAN_AT]);
    memcpy(&to[FLAGS_AT - 1], "-00", sizeof("-00"));
}

static bool read_hex(const char *from, size_t n_digits, uint64_t *to) {
    uint64_t number = 0;
    for (size_t i = 0; i < n_digits; i++) {
        const char *const digit = memchr(DIGITS, from[i], sizeof(DIGITS) - 1);
        if (digit == NULL) {
            return false;
        }
        number = number << 4 | (uint64_t)(digit - DIGITS);
    }
    *to = number;
    return true;
}

bool trace_parse(struct text value, struct trace *to) {
    struct trace trace = {0};
    uint64_t flags = 0;
    const char *const bytes = value.bytes;
    if (value.len != TRACE_SIZE - 1 || memcmp(bytes, "00-", ID_AT) != 0 ||
        bytes[SPAN_AT - 1] != '-' || bytes[FLAGS_AT - 1] != '-' ||
        !read_hex(&bytes[ID_AT], SPAN_DIGITS, &trace.high) ||
        !read_hex(&bytes[ID_AT + SPAN_DIGITS], SPAN_DIGITS, &trace.low) ||
        !read_hex(&bytes[SPAN_AT], SPAN_DIGITS, &trace.span) ||
        !read_hex(&bytes[FLAGS_AT], 2, &flags) || !trace_is_known(&trace) || trace.span == 0) {
        return false;
    }
    *to = trace;
    return true;
}
