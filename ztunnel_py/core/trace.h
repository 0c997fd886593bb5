/* SPDX-License-Identifier: Apache-2.0 */
/* Which connection this is, on every node that it passes.
 *
 * The client's side draws the id and sends it in the `traceparent` of its CONNECT (W3C Trace
 * Context), where ztunnel has a random one and proxies of other makers read or ignore it. The
 * server's side takes it over, if it is exactly of that form: nothing else of the header gets
 * anywhere. It is a name for people and tells nothing about who is served.
 */
#ifndef ZT_TRACE_H
#define ZT_TRACE_H

#include "base.h"

#define TRACE_SIZE 56   /* 00-<id>-<span>-00 and a NUL */
#define TRACE_DIGITS 32 /* of the id */
#define SPAN_DIGITS 16

struct trace {
    uint64_t high, low; /* the id, never 0 where it is known */
    uint64_t span;      /* of the client's side; 0: that side said nothing */
};

static inline bool trace_is_known(const struct trace *trace) {
    return (trace->high | trace->low) != 0;
}

/* Writes 16 lower-case digits, no NUL. */
void trace_hex(uint64_t number, char to[SPAN_DIGITS]);

/* The value of a `traceparent`, terminated. */
void trace_format(const struct trace *trace, char to[TRACE_SIZE]);

/* Reads such a value. False if it is not one; `to` is as it was then. */
bool trace_parse(struct text value, struct trace *to);

#endif
