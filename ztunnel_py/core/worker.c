/* SPDX-License-Identifier: Apache-2.0 */
/* See worker.h. */
#include "worker.h"

#include <stdio.h>
#include <sys/random.h>

#include "core_state.h"
#include "io.h"
#include "linger.h"
#include "slice.h"
#include "tls.h"

#define WIRE_BLOCK ((size_t)(288 * 1024)) /* a full frame as TLS records, and some more */
#define PLAIN_BLOCK ((size_t)16384)       /* a TLS record */

/* xoroshiro128+, by Blackman and Vigna. */
uint64_t worker_random(struct worker *worker) {
    const uint64_t a = worker->random[0];
    uint64_t b = worker->random[1];
    const uint64_t result = a + b;
    b ^= a;
    worker->random[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
    worker->random[1] = (b << 37) | (b >> 27);
    return result;
}

struct trace worker_trace(struct worker *worker, bool is_client) {
    struct trace trace = {.high = worker_random(worker), .low = worker_random(worker)};
    if (is_client) {
        trace.span = worker_random(worker);
    }
    return trace;
}

static bool allocate(struct worker *worker) {
    worker->scratch = mem_alloc(worker->mem, MEM_CORE, IO_HEADROOM + IO_READ_MAX);
    worker->wire_in = mem_alloc(worker->mem, MEM_CORE, WIRE_SIZE);
    worker->plain_in = mem_alloc(worker->mem, MEM_CORE, PLAIN_SIZE);
    return worker->scratch != NULL && worker->wire_in != NULL && worker->plain_in != NULL;
}

static void *run(void *argument) {
    struct worker *const worker = argument;
    char name[16];
    (void)snprintf(name, sizeof(name), "worker-%u", (unsigned)worker->index % 1000);
    (void)pthread_setname_np(pthread_self(), name); /* for people who look */
    slice_ask(SLICE_WORKER);
    loop_run(&worker->loop);
    linger_clear(worker);
    loop_turn(&worker->loop, 0); /* buries what that closed */
    return NULL;
}

bool worker_start(struct worker *worker, struct core *core, size_t index) {
    memset(worker, 0, sizeof(*worker));
    worker->core = core;
    worker->mem = &core->mem;
    worker->index = index;
    worker->wires.block_size = WIRE_BLOCK;
    worker->plains.block_size = PLAIN_BLOCK;
    list_init(&worker->conns);
    list_init(&worker->tunnels);
    list_init(&worker->handshakes);
    list_init(&worker->lingers);
    pool_init(&worker->pool);
    stats_init(&worker->stats, worker->mem);
    if (!loop_open(&worker->loop, worker->mem, core->config.has_manual_time)) {
        return false;
    }
    churn_init(&worker->churn, core->config.n_workers, worker->loop.now_ns);
    if (!allocate(worker) ||
        getrandom(worker->random, sizeof(worker->random), 0) != sizeof(worker->random) ||
        pthread_create(&worker->thread, NULL, run, worker) != 0) {
        worker_clear(worker);
        return false;
    }
    return true;
}

void worker_clear(struct worker *worker) {
    loop_close(&worker->loop);
    churn_clear(&worker->churn, worker->mem);
    stock_clear(worker->mem, &worker->wires);
    stock_clear(worker->mem, &worker->plains);
    mem_free(worker->mem, MEM_CORE, worker->scratch);
    mem_free(worker->mem, MEM_CORE, worker->wire_in);
    mem_free(worker->mem, MEM_CORE, worker->plain_in);
}
