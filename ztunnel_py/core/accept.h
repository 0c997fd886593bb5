/* SPDX-License-Identifier: Apache-2.0 */
/* Accepting: each worker watches each listening socket, the kernel wakes one of them.
 *
 * Bounded per turn; out of descriptors it backs off with a timer instead of spinning. A listener is
 * set up and closed by the decider's thread, with every worker's consent (core.c).
 */
#ifndef ZT_ACCEPT_H
#define ZT_ACCEPT_H

#include "workload.h"
#include "worker.h"

/* Prepares a listener's watches. False without memory. */
bool accept_prepare(struct core *core, struct listener *listener);
void accept_forget(struct core *core, struct listener *listener);

/* On a worker: begins, or ends, to accept. */
void accept_watch(struct worker *worker, struct listener *listener);
void accept_unwatch(struct worker *worker, struct listener *listener);

/* On one worker, when none watches any more: serves what the kernel had already accepted. */
void accept_backlog(struct worker *worker, struct listener *listener);

#endif
