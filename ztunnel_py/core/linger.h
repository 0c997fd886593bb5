/* SPDX-License-Identifier: Apache-2.0 */
/* A socket whose owner has said its last words.
 *
 * A close with bytes unread would be a reset, which can destroy what has just been sent. So our
 * side is shut, what still comes is thrown away, and the socket closes when the other side does, or
 * when for a second nothing more of ours was taken.
 */
#ifndef ZT_LINGER_H
#define ZT_LINGER_H

#include "loop.h"

struct worker;

/* Takes the socket. */
void linger_start(struct worker *worker, int fd);

/* Closes all of a worker's. */
void linger_clear(struct worker *worker);

#endif
