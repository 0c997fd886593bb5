/* SPDX-License-Identifier: Apache-2.0 */
/* See workload.h. */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "core_state.h"

struct workload *workload_create(struct core *core, struct mem *mem, uint32_t id, int netns) {
    struct workload *const workload = mem_alloc(mem, MEM_WORKLOAD, sizeof(*workload));
    if (workload == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    workload->netns = netns < 0 ? -1 : fcntl(netns, F_DUPFD_CLOEXEC, 0);
    if (netns >= 0 && workload->netns < 0) {
        mem_free(mem, MEM_WORKLOAD, workload);
        return NULL;
    }
    workload->id = id;
    workload->core = core;
    workload->mem = mem;
    atomic_init(&workload->refs, 1);
    pthread_mutex_init(&workload->lock, NULL);
    flow_share_init(&workload->share, id);
    for (size_t i = 0; i < CORE_ROLES; i++) {
        workload->listeners[i].workload = workload;
        workload->listeners[i].role = (enum core_role)i;
        workload->listeners[i].fd = -1;
    }
    return workload;
}

struct workload *workload_ref(struct workload *workload) {
    atomic_fetch_add_explicit(&workload->refs, 1, memory_order_relaxed);
    return workload;
}

void workload_unref(struct workload *workload) {
    if (workload == NULL ||
        atomic_fetch_sub_explicit(&workload->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    if (workload->netns >= 0) {
        close(workload->netns);
    }
    ident_unref(workload->ident);
    pthread_mutex_destroy(&workload->lock);
    mem_free(workload->mem, MEM_WORKLOAD, workload);
}

struct ident *workload_ident(struct workload *workload) {
    pthread_mutex_lock(&workload->lock);
    struct ident *const ident = ident_ref(workload->ident);
    pthread_mutex_unlock(&workload->lock);
    return ident;
}

void workload_set_ident(struct workload *workload, struct ident *ident) {
    pthread_mutex_lock(&workload->lock);
    struct ident *const old = workload->ident;
    workload->ident = ident;
    pthread_mutex_unlock(&workload->lock);
    ident_unref(old);
}

void workload_enter(struct workload *workload) {
    atomic_fetch_add(&workload->n_live, 1);
}

void workload_leave(struct workload *workload) {
    if (atomic_fetch_sub(&workload->n_live, 1) == 1) {
        core_became_idle(workload->core);
    }
}
