/* SPDX-License-Identifier: Apache-2.0 */
/* A tunnel's handshake, in order: accepted, identified, dialled, shaken; late or failed. */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "conn.h"
#include "core_state.h"
#include "sock.h"
#include "tunnel.h"

#define ADDRESSES 1024 /* buckets for counting handshakes by address */

bool tunnel_is_handshake(const struct tunnel *tunnel) {
    return tunnel->state < TUNNEL_OPEN;
}

/* --- accepted --- */

/* The handshake that has to make room: the oldest of the address that has most of them. */
static struct tunnel *oldest_of_busiest(struct worker *worker, const struct workload *workload) {
    uint16_t counts[ADDRESSES] = {0};
    struct tunnel *found = NULL;
    for (int pass = 0; pass < 2; pass++) {
        uint16_t most = 0;
        for (struct list *n = worker->handshakes.next; n != &worker->handshakes; n = n->next) {
            struct tunnel *const tunnel = CONTAINER_OF(n, struct tunnel, link);
            if (tunnel->workload != workload) {
                continue;
            }
            uint32_t hash = 2166136261u;
            for (size_t i = 0; i < sizeof(tunnel->remote.ip); i++) {
                hash = (hash ^ tunnel->remote.ip[i]) * 16777619u;
            }
            uint16_t *const count = &counts[(hash ^ (hash >> 16)) % ADDRESSES];
            if (pass == 0) {
                *count = (uint16_t)(*count + (*count < UINT16_MAX));
            } else if (*count > most) {
                most = *count;
                found = tunnel;
            }
        }
    }
    return found;
}

static uint32_t handshakes(const struct worker *worker, const struct workload *workload) {
    uint32_t n = 0;
    for (struct list *node = worker->handshakes.next; node != &worker->handshakes;
         node = node->next) {
        const struct tunnel *const tunnel = CONTAINER_OF(node, struct tunnel, link);
        n += tunnel->workload == workload;
    }
    return n;
}

static void bound_handshakes(struct worker *worker, const struct workload *workload) {
    const struct core_config *const config = &worker->core->config;
    const uint32_t share = config->handshakes_at_once / config->n_workers;
    const uint32_t limit = share > 0 ? share : 1;
    if (worker->n_handshakes < limit || handshakes(worker, workload) < limit) {
        return;
    }
    stats_count(&worker->stats, EVENT_handshakes_refused);
    struct tunnel *const victim = oldest_of_busiest(worker, workload);
    if (victim != NULL) {
        tunnel_abort(victim, REASON_TOO_BUSY, "handshakes");
    }
}

static void serve(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    bound_handshakes(worker, tunnel->workload);
    list_push(&worker->handshakes, &tunnel->link);
    worker->n_handshakes++;
    if (atomic_load(&tunnel->workload->is_gone)) {
        tunnel_abort(tunnel, REASON_DRAINED, NULL);
    } else {
        tunnel_identify(tunnel);
    }
}

static void moved(struct message *message) {
    serve(CONTAINER_OF(message, struct tunnel, move));
}

static struct worker *least_loaded(struct worker *here) {
    struct core *const core = here->core;
    struct worker *best = here;
    for (size_t i = 0; i < core->n_workers; i++) {
        struct worker *const worker = &core->workers[i];
        if (atomic_load_explicit(&worker->n_tunnels, memory_order_relaxed) <
            atomic_load_explicit(&best->n_tunnels, memory_order_relaxed)) {
            best = worker;
        }
    }
    return best;
}

void tunnel_accept(struct worker *worker, struct workload *workload, int fd, const struct addr *src,
                   const struct addr *local) {
    struct tunnel *const tunnel = tunnel_create(worker, workload, false, src);
    if (tunnel == NULL) {
        close(fd);
        stats_count(&worker->stats, EVENT_sockets_closed_destination);
        return;
    }
    tunnel->fd = fd;
    tunnel->local = *local;
    tunnel->move.run = moved;
    tunnel->is_live = true;
    workload_enter(workload);
    struct worker *const target = least_loaded(worker);
    atomic_fetch_add_explicit(&target->n_tunnels, 1, memory_order_relaxed);
    tunnel->worker = target;
    if (target == worker) {
        serve(tunnel);
    } else {
        loop_post(&target->loop, &tunnel->move);
    }
}

/* --- identified and dialled --- */

static void dial(struct tunnel *tunnel);

static void unidentified(struct tunnel *tunnel, const char *detail) {
    tunnel_shut(tunnel, false, tunnel->is_client ? REASON_IDENTITY : REASON_SIGNING, detail);
}

bool tunnel_begin_tls(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    const struct hop *const hop = tunnel->hop;
    const struct text *sans = NULL;
    size_t n_sans = 0;
    if (hop != NULL) {
        sans = tunnel->is_inner ? hop->inner_sans : hop->sans;
        n_sans = tunnel->is_inner ? hop->n_inner_sans : hop->n_sans;
    }
    const bool is_open = tls_open(&tunnel->tls, worker->mem, &worker->wires, tunnel->ident,
                                  tunnel->is_client, sans, n_sans);
    ident_unref(tunnel->ident);
    tunnel->ident = NULL;
    return is_open;
}

/* Takes the reference. */
static void identified(struct tunnel *tunnel, struct ident *ident) {
    tunnel->ident = ident;
    if (tunnel->is_client && tunnel->under == NULL) {
        dial(tunnel);
    } else {
        tunnel_begin(tunnel);
    }
}

static void answered(struct flow_waiter *waiter, struct verdict *verdict) {
    struct tunnel *const tunnel = CONTAINER_OF(waiter, struct tunnel, waiter);
    if (tunnel->state >= TUNNEL_CLOSING) {
        verdict_unref(verdict);
        tunnel->is_answer_late = false;
        tunnel_bury_if_unused(tunnel);
        return;
    }
    struct ident *const ident =
        verdict->action == VERDICT_FORWARD ? workload_ident(tunnel->workload) : NULL;
    if (ident != NULL) {
        identified(tunnel, ident);
    } else {
        char detail[IDENT_ERROR_SIZE] = "";
        const struct text text = verdict->detail;
        (void)snprintf(detail, sizeof(detail), "%.*s", (int)text.len, text.bytes);
        unidentified(tunnel, text.len > 0 ? detail : reason_name(verdict->reason));
    }
    verdict_unref(verdict);
}

void tunnel_identify(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    struct ident *const ident = workload_ident(tunnel->workload);
    if (ident != NULL) {
        identified(tunnel, ident);
        return;
    }
    tunnel->state = TUNNEL_IDENTIFYING;
    tunnel->waiter.loop = &worker->loop;
    tunnel->waiter.answered = answered;
    list_init(&tunnel->waiter.link);
    struct verdict *const verdict =
        flow_ask(worker->core->flows, &tunnel->workload->share, KEY_IDENTITY, NULL, 0,
                 worker->loop.now_ns, &tunnel->waiter);
    if (verdict != NULL) {
        answered(&tunnel->waiter, verdict);
    } else if (!loop_arm(&worker->loop, &tunnel->timer,
                         tunnel_config(tunnel)->decision_timeout_ns)) {
        unidentified(tunnel, "out of memory");
    }
}

static void dial_failed(struct tunnel *tunnel, int error) {
    char detail[160];
    conn_error_text(error, detail, sizeof(detail));
    tunnel_abort(tunnel, error == ETIMEDOUT ? REASON_HBONE_TIMEOUT : REASON_IO, detail);
}

static void dial(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    bool is_connected = false;
    tunnel->state = TUNNEL_DIALLING;
    tunnel->fd = sock_dial(tunnel_config(tunnel), tunnel->workload->netns, &tunnel->remote, NULL,
                           false, &is_connected);
    if (tunnel->fd < 0) {
        dial_failed(tunnel, errno);
    } else if (is_connected) {
        tunnel_begin(tunnel);
    } else if (!loop_watch(&worker->loop, &tunnel->watch, tunnel->fd)) {
        dial_failed(tunnel, errno);
    } else if (!loop_arm(&worker->loop, &tunnel->timer,
                         tunnel_config(tunnel)->connect_timeout_ns)) {
        dial_failed(tunnel, ENOMEM);
    }
}

void tunnel_connected(struct tunnel *tunnel, uint32_t events) {
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0) {
        return;
    }
    const int error = sock_error(tunnel->fd);
    if (error != 0) {
        dial_failed(tunnel, error);
    } else {
        tunnel_begin(tunnel);
    }
}

/* --- shaken --- */

void tunnel_begin(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    tunnel->state = TUNNEL_SHAKING;
    const bool is_watched = tunnel->under != NULL || tunnel->watch.fd >= 0 ||
                            loop_watch(&worker->loop, &tunnel->watch, tunnel->fd);
    if (!is_watched ||
        !loop_arm(&worker->loop, &tunnel->timer, tunnel_config(tunnel)->handshake_timeout_ns)) {
        tunnel_abort(tunnel, tunnel->is_client ? REASON_IO : REASON_TLS_HANDSHAKE, "out of memory");
        return;
    }
    if (tunnel->is_client) {
        /* Says hello; an answer cannot be there yet. */
        if (!tunnel_begin_tls(tunnel) || tls_shake(&tunnel->tls) == TLS_FAILED) {
            tunnel_abort(tunnel, REASON_IO, "out of memory");
            return;
        }
        tunnel_flush_later(tunnel);
    }
}

static void shaken_late(struct tunnel *tunnel) {
    char detail[64] = "tls handshake timed out";
    if (!tunnel->is_client) {
        (void)snprintf(detail, sizeof(detail), "not complete within %g s",
                       (double)tunnel_config(tunnel)->handshake_timeout_ns / 1e9);
    }
    tunnel_shut(tunnel, false, tunnel->is_client ? REASON_IO : REASON_TLS_HANDSHAKE, detail);
}

void tunnel_handshake_late(struct tunnel *tunnel) {
    if (tunnel->state == TUNNEL_IDENTIFYING) {
        unidentified(tunnel, "no certificate in time");
    } else if (tunnel->state == TUNNEL_DIALLING) {
        tunnel_abort(tunnel, REASON_HBONE_TIMEOUT, "deadline has elapsed");
    } else {
        shaken_late(tunnel);
    }
}

/* --- failed --- */

static void record_denied(const struct tunnel *tunnel, enum reason reason, const char *detail) {
    struct worker *const worker = tunnel->worker;
    struct record record = {
        .conn = tunnel->id,
        .trace = worker_trace(worker, false),
        .workload = tunnel->workload->id,
        .kind = RECORD_DENIED,
        .reason = (uint8_t)reason,
        .is_inbound = true,
        .tunnel_reused = -1,
        .src = tunnel->remote,
        .dst = tunnel->local,
        .original_dst = tunnel->local,
    };
    record.steps_ns[STEP_ACCEPTED] = tunnel->born_ns;
    record.steps_ns[STEP_CLOSED] = loop_clock_ns();
    if (detail != NULL && detail[0] != '\0') {
        record.detail = mem_alloc(worker->mem, MEM_RECORD, strlen(detail) + 1);
        if (record.detail != NULL) {
            memcpy(record.detail, detail, strlen(detail));
        }
    }
    if (!records_put(worker->core->records, worker->index, &record)) {
        stats_count(&worker->stats, EVENT_records_lost);
    }
}

/* Tells whoever waited for the handshake that it failed. */
void tunnel_handshake_failed(struct tunnel *tunnel, enum reason reason, const char *detail) {
    if (!tunnel->is_client) {
        record_denied(tunnel, reason, detail);
        return;
    }
    struct list *node;
    while ((node = list_pop(&tunnel->waiting)) != NULL) {
        struct conn *const conn = CONTAINER_OF(node, struct conn, waiting);
        conn_end(conn, reason, detail);
    }
}
