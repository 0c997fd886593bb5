/* SPDX-License-Identifier: Apache-2.0 */
/* Life of an outbound connection, in flow order (outbound.c). The mirror of inbound.h. */
#ifndef ZT_OUTBOUND_H
#define ZT_OUTBOUND_H

#include "conn.h"

/* A connection captured on 15001, or asked for on SOCKS5. Takes the socket. */
void outbound_accepted(struct worker *worker, struct workload *workload, int fd,
                       const struct addr *src, const struct addr *dst);

/* Its tunnel is at hand. */
void outbound_tunnelled(struct conn *conn);

#endif
