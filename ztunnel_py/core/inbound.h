/* SPDX-License-Identifier: Apache-2.0 */
/* Life of an inbound stream and of a plaintext connection, in flow order (inbound.c). The mirror of
 * outbound.h. */
#ifndef ZT_INBOUND_H
#define ZT_INBOUND_H

#include "conn.h"
#include "h2.h"

struct tunnel;

/* A complete request on a served tunnel. */
void inbound_requested(struct tunnel *tunnel, struct stream *stream,
                       const struct h2_request *request);

/* A plaintext connection captured on 15006. Takes the socket. */
void inbound_accepted(struct worker *worker, struct workload *workload, int fd,
                      const struct addr *src, const struct addr *dst);

#endif
