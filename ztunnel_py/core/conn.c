/* SPDX-License-Identifier: Apache-2.0 */
/* See conn.h. */
#include "conn.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "core_state.h"
#include "sock.h"
#include "tunnel.h"

#define DETAIL_SIZE 640

static void relay_carried(struct relay *relay, struct pipe *pipe, size_t n);
static void relay_held(struct relay *relay, struct pipe *pipe, int64_t change);
static void relay_over(struct relay *relay);
static void answered(struct flow_waiter *waiter, struct verdict *verdict);
static void run_later(struct deferred *deferred);
static void expired(struct timer *timer);

static const struct relay_ops RELAY_OPS = {
    .carried = relay_carried, .held = relay_held, .over = relay_over};

static const bool ALLOWED[CONN_STATES][CONN_STATES] = {
    [CONN_ASKING] = {[CONN_MOVING] = true,
                     [CONN_TUNNELLING] = true,
                     [CONN_DIALLING] = true,
                     [CONN_RELAYING] = true,
                     [CONN_ENDED] = true},
    [CONN_MOVING] = {[CONN_TUNNELLING] = true, [CONN_ENDED] = true},
    [CONN_TUNNELLING] = {[CONN_REQUESTING] = true, [CONN_TUNNELLING] = true, [CONN_ENDED] = true},
    [CONN_REQUESTING] = {[CONN_RELAYING] = true,
                         [CONN_TUNNELLING] = true,
                         [CONN_ASKING] = true,
                         [CONN_ENDED] = true},
    [CONN_DIALLING] = {[CONN_RELAYING] = true, [CONN_ENDED] = true},
    [CONN_RELAYING] = {[CONN_ENDED] = true},
};

void conn_set_state(struct conn *conn, enum conn_state state) {
    if (!ALLOWED[conn->state][state]) {
        stats_count(&conn->worker->stats, EVENT_internal_errors);
    }
    conn->state = state;
}

/* --- life --- */

/* The accepted socket is no more; one that is a stream has none of its own. */
static void count_socket(struct worker *worker, enum key_kind kind) {
    if (kind != KEY_INBOUND) {
        stats_count(&worker->stats, kind == KEY_OUTBOUND ? EVENT_sockets_closed_source
                                                         : EVENT_sockets_closed_destination);
    }
}

struct conn *conn_create(struct worker *worker, struct workload *workload, enum key_kind kind,
                         int fd, const struct addr *src, const struct addr *original_dst) {
    struct conn *const conn = mem_alloc(worker->mem, MEM_CONN, sizeof(*conn));
    if (conn == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        return NULL;
    }
    conn->worker = worker;
    conn->workload = workload_ref(workload);
    conn->kind = kind;
    conn->id = core_next_id(worker->core);
    conn->trace = worker_trace(worker, kind == KEY_OUTBOUND);
    conn->fd = fd;
    conn->src = *src;
    conn->original_dst = *original_dst;
    conn->dst = *original_dst;
    conn->tunnel_reused = -1;
    conn->steps_ns[STEP_ACCEPTED] = loop_clock_ns();
    conn->timer.expired = expired;
    list_init(&conn->waiting);
    deferred_init(&conn->later, run_later);
    relay_init(&conn->relay, &RELAY_OPS, worker);
    list_push(&worker->conns, &conn->link);
    workload_enter(workload);
    atomic_fetch_add(&workload->n_conns, 1);
    return conn;
}

/* Gives the memory back after this turn. */
static void conn_bury(struct conn *conn) {
    mem_free(conn->worker->mem, MEM_OTHER, conn->key);
    mem_free(conn->worker->mem, MEM_OTHER, conn->authority);
    verdict_unref(conn->verdict);
    workload_unref(conn->workload);
    loop_bury(&conn->worker->loop, &conn->grave, MEM_CONN, conn);
}

static char *copy_string(struct mem *mem, const char *string) {
    if (string == NULL || string[0] == '\0') {
        return NULL;
    }
    const size_t size = strlen(string) + 1;
    char *const copy = mem_alloc(mem, MEM_RECORD, size);
    if (copy != NULL) {
        memcpy(copy, string, size);
    }
    return copy;
}

static enum hop_protocol protocol_of(const struct conn *conn) {
    if (conn->kind != KEY_OUTBOUND) {
        return conn->authority != NULL ? HOP_HBONE : HOP_TCP;
    }
    return conn->hop != NULL ? conn->hop->protocol : HOP_TCP;
}

static void put_record(struct conn *conn, enum record_kind kind, enum reason reason,
                       const char *detail) {
    struct core *const core = conn->worker->core;
    struct record record = {
        .conn = conn->id,
        .trace = conn->trace,
        .workload = conn->workload->id,
        .kind = (uint8_t)kind,
        .reason = (uint8_t)reason,
        .is_inbound = conn->kind != KEY_OUTBOUND,
        .has_hop = conn->hop != NULL,
        .tunnel_reused = conn->tunnel_reused,
        .protocol = (uint8_t)protocol_of(conn),
        .src = conn->src,
        .dst = conn->dst,
        .original_dst = conn->original_dst,
        .app = conn->app,
        .upstream_bytes = conn->relay.up.carried,
        .downstream_bytes = conn->relay.down.carried,
        .detail = copy_string(conn->worker->mem, detail),
        .authority = copy_string(conn->worker->mem, conn->authority),
    };
    memcpy(record.steps_ns, conn->steps_ns, sizeof(record.steps_ns));
    if (conn->hop != NULL) {
        record.verdict = verdict_ref(conn->verdict);
        record.hop = (uint32_t)(conn->hop - conn->verdict->hops);
    }
    if (!records_put(core->records, conn->worker->index, &record)) {
        stats_count(&conn->worker->stats, EVENT_records_lost);
    }
}

static void record_end(struct conn *conn, enum reason reason, const char *detail) {
    conn->steps_ns[STEP_CLOSED] = loop_clock_ns();
    if (conn->is_opened) {
        stats_add(&conn->worker->stats, conn->hop->slot, STATS_CLOSED + reason_flag(reason), 1);
        put_record(conn, RECORD_CLOSED, reason, detail);
    } else {
        put_record(conn, RECORD_DENIED, reason, detail);
    }
}

/* Lets go of everything but memory. */
static void release(struct conn *conn) {
    struct worker *const worker = conn->worker;
    loop_disarm(&worker->loop, &conn->timer);
    list_remove(&conn->later.link);
    relay_close(&conn->relay);
    if (conn->has_client && io_fd_is_open(&conn->client)) {
        conn->client.io.ops->close(&conn->client.io);
    }
    if (conn->has_upstream && io_fd_is_open(&conn->upstream)) {
        conn->upstream.io.ops->close(&conn->upstream.io);
    }
    if (conn->fd >= 0) {
        close(conn->fd); /* a reset if the client has written */
        conn->fd = -1;
    }
    if (conn->stream != NULL) {
        struct stream *const stream = conn->stream;
        conn->stream = NULL;
        stream->io.ops->close(&stream->io);
    }
    if (conn->inner != NULL) {
        struct tunnel *const inner = conn->inner;
        conn->inner = NULL;
        list_remove(&conn->waiting);
        tunnel_give_back(inner);
    }
    if (conn->tunnel != NULL) {
        struct tunnel *const tunnel = conn->tunnel;
        conn->tunnel = NULL;
        list_remove(&conn->waiting);
        tunnel_give_back(tunnel);
    }
}

void conn_end(struct conn *conn, enum reason reason, const char *detail) {
    if (conn->state == CONN_ENDED) {
        return;
    }
    const bool is_early = conn->state != CONN_RELAYING;
    const bool is_kill = reason == REASON_POLICY_CHANGED || reason == REASON_DRAINED ||
                         reason == REASON_OVER_BUDGET || reason == REASON_CERT_REVOKED;
    if (conn->opens_late && !conn->is_opened) {
        conn_opened(conn, conn->hop, &conn->hop->address);
    }
    conn_set_state(conn, CONN_ENDED);
    record_end(conn, reason, detail); /* what happened is on record before the client can know */
    if (conn->kind == KEY_INBOUND && conn->stream != NULL && is_early && !is_kill) {
        h2_respond(conn->stream, reason_status(reason), NULL, 0);
    }
    release(conn);
    count_socket(conn->worker, conn->kind);
    list_remove(&conn->link);
    atomic_fetch_sub(&conn->workload->n_conns, 1);
    workload_leave(conn->workload);
    if (flow_cancel(&conn->waiter)) {
        conn_bury(conn);
    } /* else `answered` buries it */
}

static void end_now(struct conn *conn) {
    char detail[64] = "";
    if (conn->kill_reason == REASON_OVER_BUDGET) {
        (void)snprintf(detail, sizeof(detail), "%llu bytes",
                       (unsigned long long)conn->worker->core->config.buffer_budget);
    } else if (conn->kill_reason == REASON_H2) {
        (void)snprintf(detail, sizeof(detail), "the stream was reset before its response");
    }
    conn_end(conn, conn->kill_reason, detail);
}

static void run_later(struct deferred *deferred) {
    struct conn *const conn = CONTAINER_OF(deferred, struct conn, later);
    if (conn->kill_reason != REASON_OK) {
        end_now(conn);
    } else if (conn->state == CONN_DIALLING && !conn->has_upstream) {
        conn_dial_start(conn);
    }
}

void conn_end_later(struct conn *conn, enum reason reason) {
    if (conn->state != CONN_ENDED && conn->kill_reason == REASON_OK) {
        conn->kill_reason = reason;
        list_remove(&conn->later.link);
        loop_defer(&conn->worker->loop, &conn->later);
    }
}

/* --- the verdict --- */

static void arm_decision_timer(struct conn *conn) {
    const struct core_config *const config = &conn->worker->core->config;
    const uint64_t passed = conn->worker->loop.now_ns - conn->asked_ns;
    const uint64_t first = config->acknowledge_timeout_ns;
    const uint64_t limit = passed < first ? first : config->decision_timeout_ns;
    if (!loop_arm(&conn->worker->loop, &conn->timer, limit > passed ? limit - passed : 0)) {
        conn_end_later(conn, REASON_INTERNAL);
    }
}

static void decision_late(struct conn *conn) {
    const struct core_config *const config = &conn->worker->core->config;
    const uint64_t passed = conn->worker->loop.now_ns - conn->asked_ns;
    if (passed < config->decision_timeout_ns && flow_is_acknowledged(&conn->waiter)) {
        arm_decision_timer(conn);
        return;
    }
    stats_count(&conn->worker->stats, EVENT_decision_timeouts);
    char detail[32];
    (void)snprintf(detail, sizeof(detail), "%g s", (double)passed / 1e9);
    conn_end(conn, REASON_DECISION_TIMEOUT, detail);
}

static void decide(struct conn *conn, struct verdict *verdict) {
    loop_disarm(&conn->worker->loop, &conn->timer);
    if (conn->verdict == NULL) {
        conn->steps_ns[STEP_DECIDED] = loop_clock_ns();
        conn->verdict = verdict;
    }
    conn->decided(conn, verdict);
}

static void ask_again(struct conn *conn) {
    struct core *const core = conn->worker->core;
    memset(&conn->waiter, 0, sizeof(conn->waiter));
    conn->waiter.loop = &conn->worker->loop;
    conn->waiter.answered = answered;
    list_init(&conn->waiter.link);
    struct verdict *const verdict =
        flow_ask(core->flows, &conn->workload->share, conn->asked, conn->key, conn->key_len,
                 conn->worker->loop.now_ns, &conn->waiter);
    if (verdict != NULL) {
        decide(conn, verdict);
    } else {
        arm_decision_timer(conn);
    }
}

static void answered(struct flow_waiter *waiter, struct verdict *verdict) {
    struct conn *const conn = CONTAINER_OF(waiter, struct conn, waiter);
    if (conn->state == CONN_ENDED) {
        verdict_unref(verdict);
        conn_bury(conn);
        return;
    }
    if (flow_is_stale(conn->worker->core->flows, verdict)) {
        verdict_unref(verdict); /* the state moved on while the answer was under way */
        ask_again(conn);
        return;
    }
    decide(conn, verdict);
}

void conn_ask(struct conn *conn, enum key_kind kind,
              void (*decided)(struct conn *conn, struct verdict *verdict)) {
    conn->asked = kind;
    conn->decided = decided;
    conn->asked_ns = conn->worker->loop.now_ns;
    ask_again(conn);
}

void conn_captured(struct worker *worker, struct workload *workload, enum key_kind kind, int fd,
                   const struct addr *src, const struct addr *dst,
                   void (*decided)(struct conn *conn, struct verdict *verdict)) {
    struct conn *const conn = conn_create(worker, workload, kind, fd, src, dst);
    if (conn == NULL) {
        count_socket(worker, kind);
        return;
    }
    if (atomic_load(&workload->is_gone)) {
        conn_end(conn, REASON_DRAINED, NULL);
        return;
    }
    conn->key = mem_alloc(worker->mem, MEM_OTHER, ADDR_IP_PACKED + ADDR_PACKED);
    if (conn->key == NULL) {
        conn_end(conn, REASON_INTERNAL, "out of memory");
        return;
    }
    conn->key_len = key_pack_captured(src, dst, conn->key, ADDR_IP_PACKED + ADDR_PACKED);
    conn_ask(conn, kind, decided);
}

bool conn_keep_authority(struct conn *conn, struct text authority) {
    conn->authority = mem_alloc(conn->worker->mem, MEM_OTHER, authority.len + 1);
    if (conn->authority == NULL) {
        return false;
    }
    if (authority.len > 0) {
        memcpy(conn->authority, authority.bytes, authority.len);
    }
    return true;
}

bool conn_open_client(struct conn *conn) {
    conn->has_client = io_fd_open(&conn->client, conn->worker, conn->fd);
    if (!conn->has_client) {
        conn_end(conn, REASON_INTERNAL, "out of memory");
        return false;
    }
    conn->fd = -1;
    return true;
}

void conn_opened(struct conn *conn, const struct hop *hop, const struct addr *dst) {
    conn->hop = hop;
    conn->dst = *dst;
    conn->is_opened = true;
    stats_add(&conn->worker->stats, hop->slot, STATS_OPENED, 1);
    if (atomic_load_explicit(&conn->worker->core->report_opened, memory_order_relaxed)) {
        put_record(conn, RECORD_OPENED, REASON_OK, NULL);
    }
}

void conn_refuse(struct conn *conn, const struct addr *dst) {
    const struct verdict *const verdict = conn->verdict;
    const struct text from = verdict->detail;
    char detail[DETAIL_SIZE];
    const size_t len = from.len < sizeof(detail) ? from.len : sizeof(detail) - 1;
    if (len > 0) {
        memcpy(detail, from.bytes, len);
    }
    detail[len] = '\0';
    if (verdict->n_hops > 0 && !reason_is_early(verdict->reason)) {
        conn_opened(conn, &verdict->hops[0], dst);
    }
    conn_end(conn, verdict->reason, detail);
}

void conn_error_text(int error, char *text, size_t size) {
    char name[128];
    (void)snprintf(text, size, "%s (os error %d)", strerror_r(error, name, sizeof(name)), error);
}

/* --- timers --- */

static void expired(struct timer *timer) {
    struct conn *const conn = CONTAINER_OF(timer, struct conn, timer);
    switch (conn->state) {
    case CONN_ASKING:
        decision_late(conn);
        break;
    case CONN_DIALLING:
        if (!conn->has_upstream &&
            loop_arm(&conn->worker->loop, timer, conn->worker->core->config.connect_timeout_ns)) {
            conn_dial_start(conn); /* waited for a port */
        } else {
            conn_end(conn, conn->dial_failed, "deadline has elapsed");
        }
        break;
    case CONN_REQUESTING:
        conn_end(conn, REASON_H2, "no response to CONNECT in time");
        break;
    default:
        break;
    }
}

/* --- the relay --- */

void conn_relay(struct conn *conn, struct io *client, struct io *upstream) {
    conn_set_state(conn, CONN_RELAYING);
    loop_disarm(&conn->worker->loop, &conn->timer);
    if (conn->steps_ns[STEP_CONNECTED] == 0) {
        conn->steps_ns[STEP_CONNECTED] = loop_clock_ns();
    }
    if (conn->stream != NULL) {
        conn->stream->is_started = true;
    }
    relay_set_client(&conn->relay, client);
    relay_set_upstream(&conn->relay, upstream);
    relay_start(&conn->relay);
}

static void relay_carried(struct relay *relay, struct pipe *pipe, size_t n) {
    struct conn *const conn = CONTAINER_OF(relay, struct conn, relay);
    if (conn->hop != NULL) {
        const unsigned column = pipe == &relay->up ? STATS_RECEIVED : STATS_SENT;
        stats_add(&conn->worker->stats, conn->hop->slot, column, n);
    }
}

/* The connection of that workload, on this worker, whose reader stalled first. */
static struct conn *longest_stalled(struct worker *worker, const struct workload *workload) {
    struct conn *found = NULL;
    uint64_t since = UINT64_MAX;
    for (struct list *node = worker->conns.next; node != &worker->conns; node = node->next) {
        struct conn *const conn = CONTAINER_OF(node, struct conn, link);
        if (conn->workload != workload || conn->stream == NULL) {
            continue;
        }
        if (conn->kill_reason != REASON_OK) {
            return NULL; /* what it holds is about to be given back */
        }
        const struct pipe *const pipe =
            conn->kind == KEY_OUTBOUND ? &conn->relay.down : &conn->relay.up;
        if (pipe->stalled_since != 0 && pipe->stalled_since < since) {
            since = pipe->stalled_since;
            found = conn;
        }
    }
    return found;
}

static void relay_held(struct relay *relay, struct pipe *pipe, int64_t change) {
    struct conn *const conn = CONTAINER_OF(relay, struct conn, relay);
    const bool is_of_stream = conn->stream != NULL && pipe->source == &conn->stream->io;
    if (!is_of_stream) {
        return; /* at most one chunk of a socket */
    }
    struct workload *const workload = conn->workload;
    const int64_t now = atomic_fetch_add(&workload->buffered, change) + change;
    if (change > 0 && now > (int64_t)conn->worker->core->config.buffer_budget) {
        struct conn *const victim = longest_stalled(conn->worker, workload);
        if (victim != NULL) {
            stats_count(&conn->worker->stats, EVENT_over_budget);
            conn_end_later(victim, REASON_OVER_BUDGET);
        }
    }
}

static void error_text(struct io_error error, char *text, size_t size) {
    char what[160];
    if (error.is_reset) {
        const char *const name = nghttp2_http2_strerror(error.code);
        (void)snprintf(what, sizeof(what), "stream reset: %s", name);
    } else {
        conn_error_text(error.number, what, sizeof(what));
    }
    (void)snprintf(text, size, "io error: %s", what);
}

static void relay_over(struct relay *relay) {
    struct conn *const conn = CONTAINER_OF(relay, struct conn, relay);
    char detail[DETAIL_SIZE] = "";
    enum reason reason = REASON_OK;
    if (relay->up.has_error) {
        reason = REASON_SEND;
        error_text(relay->up.error, detail, sizeof(detail));
    } else if (relay->down.has_error) {
        reason = REASON_RECEIVE;
        error_text(relay->down.error, detail, sizeof(detail));
    }
    conn_end(conn, reason, detail);
}
