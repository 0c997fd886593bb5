/* SPDX-License-Identifier: Apache-2.0 */
/* How long a thread may run before others do, as it asks the scheduler.
 *
 * While the decider takes in a large push it computes for seconds. Workers, and the applications of
 * the node, wake up many times a millisecond to move some bytes. Since Linux 6.12 a thread that
 * wakes up interrupts one with a longer slice of time than its own. Needs no privilege and costs
 * nobody a share of the processor; older kernels know no slices and ignore it.
 */
#ifndef ZT_SLICE_H
#define ZT_SLICE_H

#include "base.h"

#define SLICE_WORKER UINT64_C(100000)   /* nanoseconds; the shortest that Linux grants */
#define SLICE_DECIDER UINT64_C(4000000) /* longer than anybody's who does not ask: up to 3 ms */

/* For the calling thread, and those that it starts. */
void slice_ask(uint64_t nanoseconds);

#endif
