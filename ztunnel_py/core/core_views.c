/* SPDX-License-Identifier: Apache-2.0 */
/* What can be looked at from outside: connections, tunnels, live keys, numbers, records; and the
 * clock of tests. Each is collected on the workers, one after the other. */
#include <stdlib.h>

#include "conn.h"
#include "core_call.h"
#include "core_state.h"
#include "tunnel.h"

/* A growing array that workers fill, one at a time. */
struct collection {
    struct core *core;
    void *items;
    size_t n, size, item_size;
    const struct workload *workload; /* scope, where there is one */
    const uint64_t *ids;             /* conn_kill */
    size_t n_ids;
    enum reason reason;
};

static void *add_item(struct collection *collection) {
    if (collection->n == collection->size) {
        const size_t size = collection->size == 0 ? 64 : 2 * collection->size;
        void *const grown = realloc(collection->items, size * collection->item_size);
        if (grown == NULL) {
            return NULL;
        }
        collection->items = grown;
        collection->size = size;
    }
    void *const item = (char *)collection->items + collection->n * collection->item_size;
    memset(item, 0, collection->item_size);
    collection->n++;
    return item;
}

static char *copy_string(const char *from) {
    return from == NULL ? NULL : strdup(from);
}

/* --- live flows --- */

static void collect_keys(struct worker *worker, void *argument) {
    struct collection *const collection = argument;
    for (struct list *node = worker->conns.next; node != &worker->conns; node = node->next) {
        const struct conn *const conn = CONTAINER_OF(node, struct conn, link);
        if (conn->workload != collection->workload || conn->kind == KEY_OUTBOUND ||
            conn->key == NULL) {
            continue;
        }
        struct core_live *const live = add_item(collection);
        uint8_t *const key = malloc(conn->key_len);
        if (live == NULL || key == NULL) {
            free(key);
            collection->n -= live != NULL;
            continue;
        }
        memcpy(key, conn->key, conn->key_len);
        *live = (struct core_live){conn->id, conn->kind, key, conn->key_len};
    }
}

size_t core_live_keys(struct core *core, uint32_t workload, struct core_live **to) {
    struct collection collection = {.core = core,
                                    .item_size = sizeof(struct core_live),
                                    .workload = core_find_workload(core, workload)};
    if (collection.workload != NULL) {
        core_call(core, collect_keys, &collection);
    }
    *to = collection.items;
    return collection.n;
}

void core_live_free(struct core *core, struct core_live *live, size_t n) {
    (void)core;
    for (size_t i = 0; i < n; i++) {
        free(live[i].key);
    }
    free(live);
}

static int compare_ids(const void *a, const void *b) {
    const uint64_t first = *(const uint64_t *)a;
    const uint64_t second = *(const uint64_t *)b;
    return first < second ? -1 : first > second;
}

static void kill_some(struct worker *worker, void *argument) {
    const struct collection *const wanted = argument;
    for (struct list *node = worker->conns.next; node != &worker->conns;) {
        struct conn *const conn = CONTAINER_OF(node, struct conn, link);
        node = node->next;
        if (bsearch(&conn->id, wanted->ids, wanted->n_ids, sizeof(uint64_t), compare_ids) != NULL) {
            conn_end(conn, wanted->reason, NULL);
        }
    }
}

void core_conn_kill(struct core *core, const uint64_t *conns, size_t n, enum reason reason) {
    uint64_t *const ids = malloc((n > 0 ? n : 1) * sizeof(*ids));
    if (ids == NULL) {
        return;
    }
    if (n > 0) {
        memcpy(ids, conns, n * sizeof(*ids));
        qsort(ids, n, sizeof(*ids), compare_ids);
    }
    struct collection wanted = {.ids = ids, .n_ids = n, .reason = reason};
    core_call(core, kill_some, &wanted);
    free(ids);
}

/* --- connections --- */

static const char *state_name(const struct conn *conn) {
    static const char *const NAMES[CONN_STATES] = {
        [CONN_ASKING] = "deciding",       [CONN_MOVING] = "moving",
        [CONN_TUNNELLING] = "tunnelling", [CONN_REQUESTING] = "requesting",
        [CONN_DIALLING] = "dialling",     [CONN_RELAYING] = "relaying",
        [CONN_ENDED] = "ended",
    };
    return NAMES[conn->state];
}

static uint64_t since(const struct worker *worker, uint64_t start) {
    return start == 0 || worker->loop.now_ns < start ? 0 : worker->loop.now_ns - start;
}

static void collect_conns(struct worker *worker, void *argument) {
    for (struct list *node = worker->conns.next; node != &worker->conns; node = node->next) {
        const struct conn *const conn = CONTAINER_OF(node, struct conn, link);
        const struct pipe *const up = &conn->relay.up;
        const struct pipe *const down = &conn->relay.down;
        struct core_conn_view *const view = add_item(argument);
        if (view == NULL) {
            return;
        }
        *view = (struct core_conn_view){
            .id = conn->id,
            .trace = conn->trace,
            .workload = conn->workload->id,
            .is_inbound = conn->kind != KEY_OUTBOUND,
            .has_hop = conn->is_opened,
            .protocol = (uint8_t)(conn->kind != KEY_OUTBOUND
                                      ? (conn->authority != NULL ? HOP_HBONE : HOP_TCP)
                                      : (conn->hop != NULL ? conn->hop->protocol : HOP_TCP)),
            .src = conn->src,
            .original_dst = conn->original_dst,
            .dst = conn->dst,
            .app = conn->app,
            .authority = copy_string(conn->authority),
            .age_ns = loop_clock_ns() - conn->steps_ns[STEP_ACCEPTED],
            .upstream_bytes = up->carried,
            .downstream_bytes = down->carried,
            .tunnel = conn->tunnel_id,
            .client_stalled_ns = since(worker, down->stalled_since),
            .upstream_stalled_ns = since(worker, up->stalled_since),
            .client_waiting = down->held.len,
            .upstream_waiting = up->held.len,
            .state = state_name(conn),
        };
    }
}

size_t core_connections(struct core *core, struct core_conn_view **to) {
    struct collection collection = {.core = core, .item_size = sizeof(struct core_conn_view)};
    core_call(core, collect_conns, &collection);
    *to = collection.items;
    return collection.n;
}

void core_connections_free(struct core *core, struct core_conn_view *views, size_t n) {
    (void)core;
    for (size_t i = 0; i < n; i++) {
        free(views[i].authority);
    }
    free(views);
}

/* --- tunnels --- */

static void collect_tunnels(struct worker *worker, void *argument) {
    for (struct list *node = worker->tunnels.next; node != &worker->tunnels; node = node->next) {
        const struct tunnel *const tunnel = CONTAINER_OF(node, struct tunnel, link);
        if (tunnel->state != TUNNEL_OPEN) {
            continue;
        }
        struct core_tunnel_view *const view = add_item(argument);
        if (view == NULL) {
            return;
        }
        *view = (struct core_tunnel_view){
            .id = tunnel->id,
            .workload = tunnel->workload->id,
            .is_inbound = !tunnel->is_client,
            .is_draining = tunnel->is_draining || tunnel->close_when_idle,
            .remote = tunnel->remote,
            .identity = copy_string(tunnel->tls.check.remote),
            .streams = tunnel->h2.n_streams,
            .worker = (uint32_t)worker->index,
            .age_ns = loop_clock_ns() - tunnel->born_ns,
            .received_bytes = tunnel->h2.received,
            .sent_bytes = tunnel->h2.sent,
            .stalled_ns = since(worker, tunnel->stalled_since),
            .unsent_bytes = tunnel->tls.out_len,
            .send_window = nghttp2_session_get_remote_window_size(tunnel->h2.session),
            .receive_window = nghttp2_session_get_local_window_size(tunnel->h2.session),
        };
    }
}

size_t core_tunnels(struct core *core, struct core_tunnel_view **to) {
    struct collection collection = {.core = core, .item_size = sizeof(struct core_tunnel_view)};
    core_call(core, collect_tunnels, &collection);
    *to = collection.items;
    return collection.n;
}

void core_tunnels_free(struct core *core, struct core_tunnel_view *views, size_t n) {
    (void)core;
    for (size_t i = 0; i < n; i++) {
        free(views[i].identity);
    }
    free(views);
}

/* --- numbers and records --- */

void core_counts(struct core *core, uint64_t counts[MEM_KINDS]) {
    for (size_t i = 0; i < MEM_KINDS; i++) {
        const int64_t live = atomic_load(&core->mem.live[i]);
        counts[i] = live > 0 ? (uint64_t)live : 0;
    }
}

uint64_t core_buffered(struct core *core) {
    return (uint64_t)atomic_load(&core->mem.buffered);
}

void core_slots(struct core *core, uint64_t *sums, size_t n_slots) {
    memset(sums, 0, n_slots * STATS_COLUMNS * sizeof(*sums));
    stats_sum_slots(&core->stats, sums, n_slots);
    for (size_t i = 0; i < core->config.n_workers; i++) {
        stats_sum_slots(&core->workers[i].stats, sums, n_slots);
    }
}

void core_events(struct core *core, uint64_t *sums) {
    memset(sums, 0, STATS_EVENTS * sizeof(*sums));
    stats_sum_events(&core->stats, sums);
    for (size_t i = 0; i < core->config.n_workers; i++) {
        stats_sum_events(&core->workers[i].stats, sums);
    }
}

int core_record_fd(const struct core *core) {
    return records_fd(core->records);
}

size_t core_recv_records(struct core *core, struct record *to, size_t limit) {
    return records_take(core->records, to, limit);
}

void core_record_release(struct core *core, struct record *record) {
    record_release(core->records, record);
}

void core_report_opened(struct core *core, bool is_wanted) {
    atomic_store(&core->report_opened, is_wanted);
}

/* --- tests --- */

static void advance(struct worker *worker, void *argument) {
    loop_advance(&worker->loop, *(const uint64_t *)argument);
}

void core_advance(struct core *core, uint64_t ns) {
    core_call(core, advance, &ns);
    core_fence(core);
}
