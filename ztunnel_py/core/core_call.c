/* SPDX-License-Identifier: Apache-2.0 */
/* See core_call.h. */
#include "core_call.h"

struct call {
    struct message message;
    struct worker *worker;
    void (*run)(struct worker *worker, void *argument);
    void *argument;
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool is_done;
};

static void carry_out(struct message *message) {
    struct call *const call = CONTAINER_OF(message, struct call, message);
    call->run(call->worker, call->argument);
    pthread_mutex_lock(&call->lock);
    call->is_done = true;
    pthread_cond_signal(&call->done);
    pthread_mutex_unlock(&call->lock);
}

void core_call(struct core *core, void (*run)(struct worker *worker, void *argument),
               void *argument) {
    struct call call = {.message.run = carry_out, .run = run, .argument = argument};
    pthread_mutex_init(&call.lock, NULL);
    pthread_cond_init(&call.done, NULL);
    for (size_t i = 0; i < core->n_workers; i++) {
        call.worker = &core->workers[i];
        call.is_done = false;
        loop_post(&call.worker->loop, &call.message);
        pthread_mutex_lock(&call.lock);
        while (!call.is_done) {
            pthread_cond_wait(&call.done, &call.lock);
        }
        pthread_mutex_unlock(&call.lock);
    }
    pthread_cond_destroy(&call.done);
    pthread_mutex_destroy(&call.lock);
}

static void read_now(struct worker *worker, void *argument) {
    *(uint64_t *)argument = worker->loop.now_ns;
}

uint64_t core_manual_now(struct core *core) {
    uint64_t now = 0;
    core_call(core, read_now, &now);
    return now;
}
