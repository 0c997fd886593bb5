/* SPDX-License-Identifier: Apache-2.0 */
/* See core.h: life, workloads, questions. What can be looked at is in core_views.c. */
#include "core.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "accept.h"
#include "conn.h"
#include "core_call.h"
#include "core_state.h"
#include "outbound.h"
#include "slice.h"
#include "sock.h"
#include "tunnel.h"

#define WAITERS_MAX 65536
#define STOP_TRIES 10000
#define TRIM_AT (16 << 20) /* free memory that the allocator keeps: handshakes come and go */
#define MMAP_AT (1 << 20)

/* --- life --- */

void core_became_idle(struct core *core) {
    if (!atomic_load_explicit(&core->is_idle_wanted, memory_order_relaxed)) {
        return;
    }
    const uint64_t one = 1;
    (void)!write(core->idle_fd, &one, sizeof(one)); /* can only fail when it is readable */
}

uint64_t core_next_id(struct core *core) {
    return atomic_fetch_add_explicit(&core->next_id, 1, memory_order_relaxed) + 1;
}

static bool create_parts(struct core *core) {
    const struct flow_limits limits = {
        .flows_per_workload = core->config.flows_per_workload,
        .questions_per_workload = core->config.questions_per_workload,
        .waiters_per_question = WAITERS_MAX,
        .idle_ns = core->config.flow_idle_ns,
    };
    core->idle_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    core->upcalls = upcalls_create(&core->mem);
    core->records = records_create(&core->mem, core->config.n_workers);
    core->workers = mem_alloc(&core->mem, MEM_CORE, core->config.n_workers * sizeof(struct worker));
    if (core->idle_fd < 0 || core->upcalls == NULL || core->records == NULL ||
        core->workers == NULL) {
        return false;
    }
    core->flows = flows_create(&core->mem, &limits, core->upcalls, &core->stats);
    return core->flows != NULL;
}

static void stop_worker(struct worker *worker, void *argument) {
    (void)argument;
    loop_stop(&worker->loop);
}

static void stop_workers(struct core *core) {
    core_call(core, stop_worker, NULL);
    for (size_t i = 0; i < core->n_workers; i++) {
        pthread_join(core->workers[i].thread, NULL);
        worker_clear(&core->workers[i]);
    }
    core->n_workers = 0;
}

const char *core_problem(const struct core_config *config) {
    return ident_problem(config->post_quantum);
}

struct core *core_start(const struct core_config *config) {
    struct core *const core = calloc(1, sizeof(*core));
    if (core == NULL || config->n_workers == 0 || config->n_workers > CORE_WORKERS_MAX ||
        !tls_init()) {
        free(core);
        errno = core == NULL ? ENOMEM : EINVAL;
        return NULL;
    }
    (void)mallopt(M_TRIM_THRESHOLD, TRIM_AT); /* where it does not know these, it is slower */
    (void)mallopt(M_MMAP_THRESHOLD, MMAP_AT);
    slice_ask(SLICE_DECIDER);
    core->config = *config;
    core->idle_fd = -1;
    revocation_init(&core->revocation, &core->mem);
    atomic_init(&core->report_opened, config->report_opened);
    released_init(&core->released);
    stats_init(&core->stats, &core->mem);
    bool is_started = create_parts(core);
    while (is_started && core->n_workers < config->n_workers) {
        is_started = worker_start(&core->workers[core->n_workers], core, core->n_workers);
        core->n_workers += is_started;
    }
    if (!is_started) {
        stop_workers(core);
        core_free(core);
        errno = ENOMEM;
        return NULL;
    }
    return core;
}

static void nothing(struct worker *worker, void *argument) {
    (void)worker;
    (void)argument;
}

void core_fence(struct core *core) {
    /* A worker that runs the second has finished the turn of the first. */
    core_call(core, nothing, NULL);
    core_call(core, nothing, NULL);
}

static bool lives(const struct core *core) {
    return atomic_load(&core->mem.live[MEM_CONN]) > 0 ||
           atomic_load(&core->mem.live[MEM_TUNNEL]) > 0 ||
           atomic_load(&core->mem.live[MEM_STREAM]) > 0;
}

void core_stop(struct core *core) {
    core_drain(core, CORE_ALL, true);
    /* What was on its way between workers arrives, and ends. */
    for (int i = 0; i < STOP_TRIES && lives(core); i++) {
        core_fence(core);
    }
    while (core->n_workloads > 0) {
        core_workload_remove(core, core->workloads[0]->id);
    }
    core_fence(core);
    stop_workers(core);
}

void core_free(struct core *core) {
    if (core == NULL) {
        return;
    }
    for (size_t i = 0; core->workers != NULL && i < core->config.n_workers; i++) {
        stats_clear(&core->workers[i].stats);
    }
    stats_clear(&core->stats);
    flows_destroy(core->flows);
    upcalls_destroy(core->upcalls);
    records_destroy(core->records);
    uint64_t tags[64];
    while (verdict_drain_released(&core->released, tags, ARRAY_LEN(tags)) > 0) {
        /* whoever did not take them does not want them */
    }
    revocation_clear(&core->revocation);
    mem_free(&core->mem, MEM_CORE, core->workers);
    mem_free(&core->mem, MEM_CORE, core->workloads);
    if (core->idle_fd >= 0) {
        close(core->idle_fd);
    }
    free(core);
}

/* --- scopes --- */

static struct workload *find(struct core *core, uint32_t id) {
    for (size_t i = 0; i < core->n_workloads; i++) {
        if (core->workloads[i]->id == id) {
            return core->workloads[i];
        }
    }
    return NULL;
}

struct workload *core_find_workload(struct core *core, uint32_t id) {
    return find(core, id);
}

static bool in_scope(const struct workload *workload, uint32_t scope) {
    return scope == CORE_ALL || workload->id == scope;
}

bool core_is_idle(struct core *core, uint32_t scope) {
    atomic_store(&core->is_idle_wanted, true);
    for (size_t i = 0; i < core->n_workloads; i++) {
        struct workload *const workload = core->workloads[i];
        if (in_scope(workload, scope) && atomic_load(&workload->n_live) > 0) {
            return false;
        }
    }
    return true;
}

int core_idle_fd(const struct core *core) {
    return core->idle_fd;
}

/* --- the end of listeners and of what runs --- */

static void unwatch(struct worker *worker, void *argument) {
    accept_unwatch(worker, argument);
}

static void serve_backlog(struct worker *worker, void *argument) {
    if (worker->index == 0) {
        accept_backlog(worker, argument);
    }
}

static void close_listeners(struct core *core, struct workload *workload, bool has_backlog) {
    for (size_t i = 0; i < CORE_ROLES; i++) {
        struct listener *const listener = &workload->listeners[i];
        if (listener->fd < 0) {
            continue;
        }
        if (listener->is_serving) {
            core_call(core, unwatch, listener);
            if (has_backlog) {
                core_call(core, serve_backlog, listener);
            }
        }
        close(listener->fd);
        listener->fd = -1;
        accept_forget(core, listener);
    }
}

struct ending {
    struct workload *workload;
    bool is_immediate;
};

static void end_conns(struct worker *worker, const struct workload *workload) {
    for (struct list *node = worker->conns.next; node != &worker->conns;) {
        struct conn *const conn = CONTAINER_OF(node, struct conn, link);
        node = node->next;
        if (conn->workload == workload) {
            conn_end(conn, REASON_DRAINED, NULL);
        }
    }
}

static void end_tunnels(const struct list *tunnels, const struct ending *ending) {
    for (struct list *node = tunnels->next; node != tunnels;) {
        struct tunnel *const tunnel = CONTAINER_OF(node, struct tunnel, link);
        node = node->next;
        if (tunnel->workload != ending->workload) {
            continue;
        }
        if (ending->is_immediate) {
            tunnel_abort(tunnel, REASON_DRAINED, NULL);
        } else if (!tunnel->is_client) {
            tunnel_drain(tunnel);
        } else if (tunnel->users == 0) {
            tunnel_retire(tunnel);
        }
    }
}

static void end_workload(struct worker *worker, void *argument) {
    const struct ending *const ending = argument;
    if (ending->is_immediate) {
        end_conns(worker, ending->workload);
    }
    end_tunnels(&worker->tunnels, ending);
    end_tunnels(&worker->handshakes, ending);
}

static void drain(struct core *core, struct workload *workload, bool is_immediate) {
    if (is_immediate) {
        atomic_store(&workload->is_gone, true);
    }
    close_listeners(core, workload, !is_immediate);
    atomic_store(&workload->is_draining, true);
    struct ending ending = {workload, is_immediate};
    core_call(core, end_workload, &ending);
}

void core_step_aside(struct core *core) {
    for (size_t i = 0; i < core->n_workloads; i++) {
        const struct workload *const workload = core->workloads[i];
        for (size_t role = 0; role < CORE_ROLES && workload->netns >= 0; role++) {
            if (workload->listeners[role].fd >= 0) {
                sock_step_aside(workload->listeners[role].fd);
            }
        }
    }
}

void core_drain(struct core *core, uint32_t scope, bool is_immediate) {
    for (size_t i = 0; i < core->n_workloads; i++) {
        if (in_scope(core->workloads[i], scope)) {
            drain(core, core->workloads[i], is_immediate);
        }
    }
    core_fence(core);
    core_became_idle(core);
}

/* --- workloads --- */

static bool keep(struct core *core, struct workload *workload) {
    if (core->n_workloads == core->workloads_size) {
        const size_t size = core->workloads_size == 0 ? 8 : 2 * core->workloads_size;
        struct workload **const grown =
            mem_alloc(&core->mem, MEM_CORE, size * sizeof(struct workload *));
        if (grown == NULL) {
            return false;
        }
        if (core->n_workloads > 0) {
            memcpy(grown, core->workloads, core->n_workloads * sizeof(struct workload *));
        }
        mem_free(&core->mem, MEM_CORE, core->workloads);
        core->workloads = grown;
        core->workloads_size = size;
    }
    core->workloads[core->n_workloads++] = workload;
    return true;
}

static int bind_one(struct core *core, struct workload *workload, struct core_listen *listen) {
    struct listener *const listener = &workload->listeners[listen->role];
    const int8_t orig_src = core->config.orig_src;
    listener->fd = sock_listen(&core->config, workload->netns, listen, &listen->bound);
    if (listener->fd < 0) {
        return errno;
    }
    listener->bound = listen->bound;
    listener->is_transparent = orig_src != 0 && sock_make_transparent(listener->fd);
    listen->is_transparent = listener->is_transparent;
    if (orig_src == 1 && !listener->is_transparent) {
        return EPERM;
    }
    return accept_prepare(core, listener) ? 0 : ENOMEM;
}

int core_workload_add(struct core *core, uint32_t id, int netns, struct core_listen *listeners,
                      size_t n, size_t *failed) {
    struct workload *const workload = workload_create(core, &core->mem, id, netns);
    int error = workload == NULL ? errno : 0;
    *failed = 0;
    for (size_t i = 0; i < n && error == 0; i++) {
        *failed = i;
        error = bind_one(core, workload, &listeners[i]);
    }
    if (error == 0 && !keep(core, workload)) {
        error = ENOMEM;
    }
    if (error != 0 && workload != NULL) {
        close_listeners(core, workload, false);
        workload_unref(workload);
    }
    return error;
}

static void watch(struct worker *worker, void *argument) {
    accept_watch(worker, argument);
}

void core_workload_serve(struct core *core, uint32_t id) {
    struct workload *const workload = find(core, id);
    for (size_t i = 0; workload != NULL && i < CORE_ROLES; i++) {
        struct listener *const listener = &workload->listeners[i];
        if (listener->fd >= 0 && !listener->is_serving) {
            listener->is_serving = true;
            core_call(core, watch, listener);
        }
    }
}

void core_workload_remove(struct core *core, uint32_t id) {
    for (size_t i = 0; i < core->n_workloads; i++) {
        struct workload *const workload = core->workloads[i];
        if (workload->id == id) {
            drain(core, workload, true);
            core_fence(core);
            flow_forget(core->flows, &workload->share);
            core->workloads[i] = core->workloads[--core->n_workloads];
            workload_unref(workload);
            core_became_idle(core);
            return;
        }
    }
}

/* A socket on its way to a worker. */
struct adopted {
    struct message message;
    struct worker *worker;
    struct workload *workload;
    int fd;
    struct addr src, dst;
};

static void adopt(struct message *message) {
    struct adopted *const adopted = CONTAINER_OF(message, struct adopted, message);
    outbound_accepted(adopted->worker, adopted->workload, adopted->fd, &adopted->src,
                      &adopted->dst);
    workload_leave(adopted->workload);
    workload_unref(adopted->workload);
    mem_free(adopted->worker->mem, MEM_OTHER, adopted);
}

void core_adopt(struct core *core, uint32_t id, int fd, const struct addr *src,
                const struct addr *dst) {
    struct workload *const workload = find(core, id);
    struct adopted *const adopted =
        workload == NULL ? NULL : mem_alloc(&core->mem, MEM_OTHER, sizeof(*adopted));
    if (adopted == NULL) {
        close(fd);
        stats_count_shared(&core->stats, EVENT_sockets_closed_source);
        return;
    }
    struct worker *const worker = &core->workers[core_next_id(core) % core->n_workers];
    *adopted = (struct adopted){{NULL, adopt}, worker, workload_ref(workload), fd, *src, *dst};
    workload_enter(workload);
    loop_post(&worker->loop, &adopted->message);
}

/* --- identity --- */

bool core_identity_set(struct core *core, uint32_t id, struct text chain, struct text key,
                       struct text roots, char *error, size_t error_size) {
    struct workload *const workload = find(core, id);
    const struct ident_rules rules = {
        .tls12 = core->config.tls12,
        .post_quantum = core->config.post_quantum,
        .revocation = &core->revocation,
    };
    struct ident *const ident =
        ident_create(&core->mem, chain, key, roots, &rules, error, error_size);
    if (ident == NULL) {
        return false;
    }
    if (workload != NULL) {
        workload_set_ident(workload, ident);
    } else {
        ident_unref(ident);
    }
    return true;
}

void core_identity_drop(struct core *core, uint32_t id) {
    struct workload *const workload = find(core, id);
    if (workload != NULL) {
        workload_set_ident(workload, NULL);
    }
}

bool core_revocations_load(struct core *core, const struct text *lists, size_t n, char *error,
                           size_t error_size) {
    return revocation_load(&core->revocation, lists, n, error, error_size);
}

static void end_revoked(struct worker *worker, void *argument) {
    *(size_t *)argument += tunnel_end_revoked(worker);
}

size_t core_revocations_apply(struct core *core) {
    size_t n = 0;
    revocation_apply(&core->revocation);
    core_call(core, end_revoked, &n);
    return n;
}

/* --- questions --- */

int core_question_fd(const struct core *core) {
    return upcalls_fd(core->upcalls);
}

size_t core_recv_questions(struct core *core, struct upcall *to, size_t limit) {
    return upcalls_take(core->upcalls, to, limit);
}

void core_question_free(struct core *core, struct upcall *question) {
    upcall_free(core->upcalls, question);
}

bool core_reply(struct core *core, uint64_t question, const uint8_t *bytes, size_t len,
                uint64_t tag) {
    struct verdict *const verdict = verdict_parse(&core->mem, &core->released, bytes, len, tag);
    const uint64_t now = core->config.has_manual_time ? core_manual_now(core) : loop_clock_ns();
    (void)flow_reply(core->flows, question, verdict, now);
    return verdict != NULL;
}

size_t core_recv_released(struct core *core, uint64_t *tags, size_t limit) {
    return verdict_drain_released(&core->released, tags, limit);
}

struct epoch core_epoch(struct core *core) {
    return flow_epoch(core->flows);
}

void core_epoch_bump(struct core *core, bool discovery, bool policy) {
    flow_epoch_bump(core->flows, discovery, policy);
}
