/* SPDX-License-Identifier: Apache-2.0 */
/* A CONNECT request as it is read, header by header.
 *
 * What matters is kept, the rest only counted by whoever reads. Of a header that comes several
 * times the first counts, but for baggage, whose values are all kept in their order. One thread.
 */
#ifndef ZT_H2_REQUEST_H
#define ZT_H2_REQUEST_H

#include "mem.h"
#include "trace.h"

/* The headers that matter, and the size of all. */
struct h2_request {
    struct text method, authority, forwarded, network; /* into `bytes` */
    struct text *baggage;                              /* values, in order */
    size_t n_baggage, baggage_size;
    char *bytes;
    size_t len, size;
    size_t list_size;   /* of all headers, RFC 9113 section 6.5.2 */
    struct trace trace; /* unknown: there is none, or none that can be read */
    bool has_method, has_authority, has_forwarded, has_network, has_trace;
};

/* An empty one, NULL without memory. */
struct h2_request *h2_request_create(struct mem *mem);

/* Takes a header. False without memory. */
bool h2_request_add(struct mem *mem, struct h2_request *request, struct text name,
                    struct text value);

/* NULL is harmless. */
void h2_request_free(struct mem *mem, struct h2_request *request);

#endif
