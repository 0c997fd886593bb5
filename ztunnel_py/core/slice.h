/* SPDX-License-Identifier: Apache-2.0 */
/* How long a thread may run before others do, as it asks the scheduler.
 *
 * While the decider takes in a large push it computes for seconds, and workers wake up many times a
 * millisecond to move some bytes. Since Linux 6.12 a thread with a shorter slice of time interrupts
 * one with a longer slice, and one that was interrupted or has had its slice makes room for
 * everybody who waits. Needs no privilege and costs nobody a share of the processor; older kernels
 * know no slices and ignore it.
 */
#ifndef ZT_SLICE_H
#define ZT_SLICE_H

#include "base.h"

#define SLICE_WORKER UINT64_C(100000)  /* nanoseconds; the shortest that Linux grants */
#define SLICE_DECIDER UINT64_C(300000) /* also kernel threads that carry packets wait for its end \
                                        */

/* For the calling thread, and those that it starts. */
void slice_ask(uint64_t nanoseconds);

#endif
