/* SPDX-License-Identifier: Apache-2.0 */
/* Life of a tunnel: leased, established, kept alive, drained, ended. How it comes about is in
 * tunnel_handshake.c, its bytes are in tunnel_io.c. */
#include "tunnel.h"

#include <errno.h>
#include <unistd.h>

#include "conn.h"
#include "core_state.h"
#include "linger.h"
#include "outbound.h"

#define LOOK_NS NS_PER_S /* how long a closing tunnel may take nothing */

const struct core_config *tunnel_config(const struct tunnel *tunnel) {
    return &tunnel->worker->core->config;
}

bool tunnel_is_usable(const struct tunnel *tunnel) {
    return !tunnel->is_draining && !tunnel->close_when_idle && !tunnel->is_broken &&
           tunnel->state <= TUNNEL_OPEN &&
           (tunnel->state != TUNNEL_OPEN || h2_can_open(&tunnel->h2));
}

uint32_t tunnel_capacity(const struct tunnel *tunnel) {
    const uint32_t ours = tunnel_config(tunnel)->pool_max_streams;
    uint32_t limit = ours > 0 ? ours : 1;
    if (tunnel->state == TUNNEL_OPEN && tunnel->h2.has_settings) {
        const uint32_t theirs = h2_max_streams(&tunnel->h2);
        limit = theirs < limit ? theirs : limit;
    }
    return limit > 0 ? limit : 1;
}

struct text tunnel_identity(const struct tunnel *tunnel) {
    const char *const remote = tunnel->tls.check.remote;
    return remote != NULL ? text_of(remote) : (struct text){"", 0};
}

/* --- memory --- */

static void expired(struct timer *timer);
static void unused(struct timer *timer);

struct tunnel *tunnel_create(struct worker *worker, struct workload *workload, bool is_client,
                             const struct addr *remote) {
    struct tunnel *const tunnel = mem_alloc(worker->mem, MEM_TUNNEL, sizeof(*tunnel));
    if (tunnel == NULL) {
        return NULL;
    }
    tunnel->worker = worker;
    tunnel->workload = workload_ref(workload);
    tunnel->is_client = is_client;
    tunnel->drain_confirmed = is_client;
    tunnel->id = core_next_id(worker->core);
    tunnel->born_ns = loop_clock_ns();
    tunnel->remote = *remote;
    tunnel->fd = -1;
    tunnel->timer.expired = expired;
    tunnel->idle.expired = unused;
    list_init(&tunnel->link);
    list_init(&tunnel->pooled);
    list_init(&tunnel->waiting);
    list_init(&tunnel->h2.streams);
    list_init(&tunnel->h2.blocked);
    tunnel_io_init(tunnel);
    return tunnel;
}

/* Gives the memory back once nobody holds a lease and no answer is under way. */
void tunnel_bury_if_unused(struct tunnel *tunnel) {
    if (tunnel->state != TUNNEL_CLOSED || tunnel->users > 0 || tunnel->is_answer_late) {
        return;
    }
    tunnel->is_answer_late = true; /* once */
    struct worker *const worker = tunnel->worker;
    list_remove(&tunnel->flush.link);
    list_remove(&tunnel->read_more.link);
    verdict_unref(tunnel->verdict);
    workload_unref(tunnel->workload);
    loop_bury(&worker->loop, &tunnel->grave, MEM_TUNNEL, tunnel);
}

/* --- ended --- */

/* Nothing is carried any more: out of the pool, streams broken. */
static void stop_carrying(struct tunnel *tunnel, enum reason reason, const char *detail) {
    const bool was_handshake = tunnel_is_handshake(tunnel);
    if (tunnel->h2.is_flooded) {
        stats_count(&tunnel->worker->stats, EVENT_tunnel_floods);
    }
    tunnel->state = TUNNEL_CLOSING;
    pool_remove(tunnel);
    loop_disarm(&tunnel->worker->loop, &tunnel->timer);
    loop_disarm(&tunnel->worker->loop, &tunnel->idle);
    if (!flow_cancel(&tunnel->waiter)) {
        tunnel->is_answer_late = true;
    }
    if (was_handshake) {
        tunnel->worker->n_handshakes -= !tunnel->is_client;
        tunnel_handshake_failed(tunnel, reason, detail);
    }
    if (tunnel->h2.session == NULL) {
        return;
    }
    for (struct list *node = tunnel->h2.streams.next; node != &tunnel->h2.streams;) {
        struct stream *const stream = CONTAINER_OF(node, struct stream, link);
        node = node->next;
        stream_break(stream, (struct io_error){.number = EPIPE}, false);
    }
    h2_close(&tunnel->h2);
}

void tunnel_finished(struct tunnel *tunnel) {
    if (tunnel->state == TUNNEL_CLOSED) {
        return;
    }
    struct worker *const worker = tunnel->worker;
    const bool has_words = !tunnel->is_broken;
    tunnel->state = TUNNEL_CLOSED;
    loop_disarm(&worker->loop, &tunnel->timer);
    if (tunnel->fd >= 0) {
        if (has_words) {
            loop_unwatch(&worker->loop, &tunnel->watch);
            linger_start(worker, tunnel->fd);
        } else if (tunnel->watch.fd >= 0) {
            loop_close_fd(&worker->loop, &tunnel->watch);
        } else {
            close(tunnel->fd);
        }
        tunnel->fd = -1;
    }
    if (tunnel->under != NULL) {
        struct io *const under = tunnel->under;
        tunnel->under = NULL;
        if (has_words) {
            under->ops->end(under, true);
        }
        under->ops->close(under);
    }
    tls_close(&tunnel->tls);
    ident_unref(tunnel->ident);
    tunnel->ident = NULL;
    queue_clear(worker->mem, &tunnel->inbox);
    stock_give(worker->mem, &worker->plains, tunnel->plain);
    tunnel->plain = NULL;
    list_remove(&tunnel->link);
    if (!tunnel->is_client) {
        atomic_fetch_sub_explicit(&worker->n_tunnels, 1, memory_order_relaxed);
        stats_count(&worker->stats, EVENT_sockets_closed_destination);
    }
    if (tunnel->is_live) {
        tunnel->is_live = false;
        workload_leave(tunnel->workload);
    }
    tunnel_bury_if_unused(tunnel);
}

void tunnel_shut(struct tunnel *tunnel, bool says_goaway, enum reason reason, const char *detail) {
    if (tunnel->state >= TUNNEL_CLOSING) {
        return;
    }
    if (tunnel->state == TUNNEL_OPEN) {
        if (says_goaway) {
            h2_goaway(&tunnel->h2, tunnel->h2.last_served);
        }
        tunnel_flush_plain(tunnel);
        tls_shut(&tunnel->tls);
    }
    const bool has_transport = tunnel->state >= TUNNEL_SHAKING;
    stop_carrying(tunnel, reason, detail);
    if (!has_transport) {
        tunnel->is_broken = true; /* there is nobody to say a word to */
    }
    tunnel_send(tunnel);
    if (tunnel->tls.out_len == 0 || tunnel->is_broken) {
        tunnel_finished(tunnel);
    } else {
        tunnel->unsent_before = SIZE_MAX;
        if (!loop_arm(&tunnel->worker->loop, &tunnel->timer, LOOK_NS)) {
            tunnel_finished(tunnel);
        }
    }
}

void tunnel_abort(struct tunnel *tunnel, enum reason reason, const char *detail) {
    if (tunnel->state == TUNNEL_CLOSED) {
        return;
    }
    if (tunnel->state < TUNNEL_CLOSING) {
        stop_carrying(tunnel, reason, detail);
    }
    tunnel->is_broken = true;
    tunnel_finished(tunnel);
}

/* --- leased --- */

static struct tunnel *open_client(struct conn *conn, uint64_t hash) {
    struct tunnel *const tunnel =
        tunnel_create(conn->worker, conn->workload, true, &conn->hop->address);
    if (tunnel == NULL) {
        return NULL;
    }
    tunnel->hash = hash;
    tunnel->verdict = verdict_ref(conn->verdict);
    tunnel->hop = conn->hop;
    tunnel->source = conn->src;
    list_push(&conn->worker->tunnels, &tunnel->link);
    pool_add(&conn->worker->pool, tunnel);
    stats_count(&conn->worker->stats, EVENT_pool_opened);
    return tunnel;
}

void tunnel_lease(struct conn *conn) {
    struct worker *const worker = conn->worker;
    const uint64_t hash = pool_hash(conn->workload, conn->hop, &conn->src);
    struct tunnel *tunnel = pool_find(&worker->pool, hash, conn->workload, conn->hop, &conn->src);
    const bool is_new = tunnel == NULL;
    if (is_new) {
        tunnel = open_client(conn, hash);
        if (tunnel == NULL) {
            conn_end(conn, REASON_INTERNAL, "out of memory");
            return;
        }
    }
    tunnel->users++;
    pool_sort(&worker->pool, tunnel);
    loop_disarm(&worker->loop, &tunnel->idle);
    conn->tunnel = tunnel;
    conn->tunnel_reused = tunnel->state == TUNNEL_OPEN;
    if (tunnel->state == TUNNEL_OPEN) {
        stats_count(&worker->stats, EVENT_pool_reused);
        outbound_tunnelled(conn);
        return;
    }
    list_push(&tunnel->waiting, &conn->waiting);
    if (is_new) {
        tunnel_identify(tunnel);
    }
}

void tunnel_lease_inner(struct conn *conn, struct stream *outer) {
    struct worker *const worker = conn->worker;
    struct tunnel *const tunnel = tunnel_create(worker, conn->workload, true, &conn->hop->address);
    if (tunnel == NULL) {
        outer->io.ops->close(&outer->io);
        conn_end(conn, REASON_INTERNAL, "out of memory");
        return;
    }
    tunnel->is_inner = true;
    tunnel->verdict = verdict_ref(conn->verdict);
    tunnel->hop = conn->hop;
    tunnel->users = 1;
    tunnel->under = &outer->io;
    outer->owner = tunnel;
    outer->is_started = true;
    outer->io.sink = &tunnel->sink;
    list_push(&worker->tunnels, &tunnel->link);
    list_push(&tunnel->waiting, &conn->waiting);
    conn->inner = tunnel;
    tunnel_identify(tunnel);
}

/* An unused tunnel is let go after the idle time, or at once if its workload ends. */
static void rest(struct tunnel *tunnel) {
    if (!tunnel->is_client || tunnel->users > 0 || tunnel->state >= TUNNEL_CLOSING) {
        return;
    }
    if (tunnel->is_inner || atomic_load(&tunnel->workload->is_draining)) {
        tunnel_retire(tunnel);
    } else if (!list_is_empty(&tunnel->pooled) && !loop_arm(&tunnel->worker->loop, &tunnel->idle,
                                                            tunnel_config(tunnel)->pool_idle_ns)) {
        tunnel_retire(tunnel);
    }
}

void tunnel_give_back(struct tunnel *tunnel) {
    tunnel->users--;
    pool_sort(&tunnel->worker->pool, tunnel);
    if (tunnel->state == TUNNEL_CLOSED) {
        tunnel_bury_if_unused(tunnel);
    } else {
        rest(tunnel);
    }
}

static void unused(struct timer *timer) {
    tunnel_retire(CONTAINER_OF(timer, struct tunnel, idle));
}

/* --- established --- */

void tunnel_established(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    if (!h2_open(&tunnel->h2, &tunnel_h2_ops, &worker->loop, tunnel_config(tunnel),
                 tunnel->is_client) ||
        !loop_arm(&worker->loop, &tunnel->timer, tunnel_config(tunnel)->ping_interval_ns)) {
        tunnel_abort(tunnel, REASON_INTERNAL, "out of memory");
        return;
    }
    tunnel->state = TUNNEL_OPEN;
    if (!tunnel->is_client) {
        worker->n_handshakes--;
        list_remove(&tunnel->link);
        list_push(&worker->tunnels, &tunnel->link);
    }
    tunnel_flush_later(tunnel);
    if (!tunnel->is_client && atomic_load(&tunnel->workload->is_draining)) {
        tunnel_drain(tunnel);
    }
    struct list *node;
    while (tunnel->state == TUNNEL_OPEN && (node = list_pop(&tunnel->waiting)) != NULL) {
        outbound_tunnelled(CONTAINER_OF(node, struct conn, waiting));
    }
    rest(tunnel);
}

/* --- kept alive --- */

static void ping(struct tunnel *tunnel) {
    tunnel->is_pinging = true;
    h2_ping(&tunnel->h2, false);
    tls_rest(&tunnel->tls);
    if (!loop_arm(&tunnel->worker->loop, &tunnel->timer, tunnel_config(tunnel)->ping_timeout_ns)) {
        tunnel->is_broken = true;
    }
}

void tunnel_ponged(struct tunnel *tunnel, bool is_drain) {
    if (is_drain) {
        if (!tunnel->drain_confirmed) {
            tunnel->drain_confirmed = true;
            h2_refuse(&tunnel->h2);
        }
    } else if (tunnel->is_pinging) {
        tunnel->is_pinging = false;
        if (!loop_arm(&tunnel->worker->loop, &tunnel->timer,
                      tunnel_config(tunnel)->ping_interval_ns)) {
            tunnel->is_broken = true;
        }
    }
    tunnel_flush_later(tunnel);
}

static void expired(struct timer *timer) {
    struct tunnel *const tunnel = CONTAINER_OF(timer, struct tunnel, timer);
    switch (tunnel->state) {
    case TUNNEL_IDENTIFYING:
    case TUNNEL_DIALLING:
    case TUNNEL_SHAKING:
        tunnel_handshake_late(tunnel);
        break;
    case TUNNEL_OPEN:
        if (tunnel->is_pinging) {
            stats_count(&tunnel->worker->stats, EVENT_ping_timeouts);
            tunnel_shut(tunnel, true, REASON_H2, NULL);
        } else {
            ping(tunnel);
        }
        break;
    case TUNNEL_CLOSING: {
        const size_t unsent = tunnel->tls.out_len;
        const bool is_moving = unsent < tunnel->unsent_before;
        tunnel->unsent_before = unsent;
        if (!is_moving || !loop_arm(&tunnel->worker->loop, timer, LOOK_NS)) {
            tunnel->is_broken = true;
            tunnel_finished(tunnel);
        }
        break;
    }
    case TUNNEL_CLOSED:
        break;
    }
}

/* --- drained --- */

void tunnel_settle(struct tunnel *tunnel) {
    const bool is_to_go =
        tunnel->close_when_idle || (tunnel->is_draining && tunnel->drain_confirmed);
    if (tunnel->state == TUNNEL_OPEN && is_to_go && tunnel->h2.n_streams == 0) {
        tunnel_shut(tunnel, true, REASON_H2, NULL);
    }
}

void tunnel_drain(struct tunnel *tunnel) {
    if (tunnel->is_draining || tunnel->state >= TUNNEL_CLOSING) {
        return;
    }
    if (tunnel->state != TUNNEL_OPEN) {
        return; /* the handshake is finished first, see tunnel_established */
    }
    tunnel->is_draining = true;
    if (!tunnel->is_client) {
        h2_goaway(&tunnel->h2, H2_LAST_STREAM);
        h2_ping(&tunnel->h2, true);
    }
    tunnel_flush_later(tunnel);
}

void tunnel_retire(struct tunnel *tunnel) {
    if (tunnel->state >= TUNNEL_CLOSING) {
        return;
    }
    pool_remove(tunnel);
    tunnel->close_when_idle = true;
    if (tunnel->state < TUNNEL_OPEN && tunnel->users == 0) {
        tunnel_abort(tunnel, REASON_DRAINED, NULL);
    } else {
        tunnel_flush_later(tunnel);
    }
}
