/* SPDX-License-Identifier: Apache-2.0 */
/* Which clients open connections to an application so fast that source ports could run out.
 *
 * Each connection made from a client's address leaves a socket in TIME_WAIT for a minute. Pairs of
 * client and application that used a quarter of the ports in this minute or the one before are
 * busy: their sockets get tied to the loopback device, where the kernel reuses ports after a second
 * (docs/decisions/0002-application-leg-and-lo.md). One table per worker, of a fixed size.
 */
#ifndef ZT_CHURN_H
#define ZT_CHURN_H

#include "addr.h"
#include "mem.h"

struct churn_pair;

struct churn {
    struct churn_pair *pairs; /* NULL until first used */
    uint64_t since_ns;        /* begin of this window */
    uint32_t threshold;
    uint32_t window; /* counts windows; tells old counts from new ones */
};

/* `n_workers` share the ports. */
void churn_init(struct churn *churn, uint32_t n_workers, uint64_t now_ns);
void churn_clear(struct churn *churn, struct mem *mem);

/* One more connection is made. Whether it is to be tied to the loopback device: the pair is busy,
 * and the application is of this namespace. IPv4 only; IPv6 finds no route there. */
bool churn_uses_lo(struct churn *churn, struct mem *mem, int netns, const struct addr *client,
                   const struct addr *app, uint64_t now_ns);

#endif
