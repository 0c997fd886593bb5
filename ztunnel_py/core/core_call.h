/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that are carried out on every worker, one after the other, before they return. */
#ifndef ZT_CORE_CALL_H
#define ZT_CORE_CALL_H

#include "core_state.h"

#define CORE_WORKERS_MAX 256

/* Runs `run` on each worker's thread. Never on a worker. */
void core_call(struct core *core, void (*run)(struct worker *worker, void *argument),
               void *argument);

/* Time of the manual clock. */
uint64_t core_manual_now(struct core *core);

struct workload *core_find_workload(struct core *core, uint32_t id);

#endif
