/* SPDX-License-Identifier: Apache-2.0 */
/* Life of an outbound connection, in flow order:
 *
 * 1. accepted on 15001; nothing is read from it before step 6
 * 2. the verdict: where it goes, as whom, which identities are accepted there
 * 3. a hop, drawn by weight; plain TCP is dialled
 * 4. HBONE: moved to the worker that has the tunnel, a place on it
 * 5. the CONNECT and its response; double HBONE: once more inside of that stream, and who answers
 *    there is known by what it says of itself
 * 6. relayed until both directions are over
 */
#include "outbound.h"

#include <stdio.h>
#include <unistd.h>

#include "core_state.h"
#include "sock.h"
#include "tunnel.h"

#define RETRIES_MAX 3
#define FIELDS_MAX 12
/* A header that goes onto a CONNECT inside of another tunnel's stream only. */
#define INNER_ONLY "x-forwarded-network"

static void decided(struct conn *conn, struct verdict *verdict);
static void responded(struct stream *stream, unsigned status);
static void broke(struct stream *stream, struct io_error error);

static const struct stream_ops STREAM_OPS = {.responded = responded, .broke = broke};

/* --- 1 --- */

void outbound_accepted(struct worker *worker, struct workload *workload, int fd,
                       const struct addr *src, const struct addr *dst) {
    conn_captured(worker, workload, KEY_OUTBOUND, fd, src, dst, decided);
}

/* --- 2 and 3 --- */

static void tcp_connected(struct conn *conn) {
    if (!conn_open_client(conn)) {
        return;
    }
    conn_relay(conn, &conn->client.io, &conn->upstream.io);
}

static void use_tunnel(struct conn *conn) {
    const struct hop *const hop = conn->hop;
    if (hop->authority.len > 0 && !conn_keep_authority(conn, hop->authority)) {
        conn_end(conn, REASON_INTERNAL, "out of memory");
        return;
    }
    conn->opens_late = hop->protocol == HOP_DOUBLE_HBONE;
    if (!conn->opens_late) {
        conn_opened(conn, hop, &hop->address);
    }
    conn_set_state(conn, CONN_TUNNELLING);
    tunnel_lease(conn);
}

/* 4: arrived on the worker that has the tunnel. */
static void moved(struct message *message) {
    struct conn *const conn = CONTAINER_OF(message, struct conn, move);
    list_push(&conn->worker->conns, &conn->link);
    if (atomic_load(&conn->workload->is_gone)) {
        conn_end(conn, REASON_DRAINED, NULL);
        return;
    }
    use_tunnel(conn);
}

static void move(struct conn *conn, struct worker *to) {
    conn_set_state(conn, CONN_MOVING);
    list_remove(&conn->link);
    conn->worker = to;
    conn->relay.worker = to;
    conn->move.run = moved;
    loop_post(&to->loop, &conn->move);
}

static void decided(struct conn *conn, struct verdict *verdict) {
    struct worker *const worker = conn->worker;
    mem_free(worker->mem, MEM_OTHER, conn->key); /* outbound flows are not decided again */
    conn->key = NULL;
    if (verdict->action == VERDICT_DENY) {
        conn_refuse(conn, verdict->n_hops > 0 ? &verdict->hops[0].address : &conn->dst);
        return;
    }
    if (verdict->action == VERDICT_PUNT || verdict->n_hops == 0) {
        stats_count(&worker->stats, EVENT_punted);
        conn_end(conn, REASON_INTERNAL, "nobody serves this connection");
        return;
    }
    const struct hop *const hop = verdict_draw(verdict, worker_random(worker));
    conn->hop = hop;
    if (hop->protocol == HOP_TCP) {
        conn_opened(conn, hop, &hop->address);
        conn_dial(conn, &hop->address, false, tcp_connected, REASON_IO);
        return;
    }
    struct worker *const home =
        pool_worker(worker->core, pool_hash(conn->workload, hop, &conn->src));
    if (home == worker) {
        use_tunnel(conn);
    } else {
        move(conn, home);
    }
}

/* --- 5 --- */

static size_t format_forwarded(const struct conn *conn, char *to, size_t size) {
    char src[ADDR_TEXT_SIZE];
    (void)addr_format(&conn->src, src);
    const struct text host = conn->verdict->forwarded_host;
    const int n = host.len == 0
                      ? snprintf(to, size, "for=\"%s\"", src)
                      : snprintf(to, size, "for=\"%s\";host=%.*s", src, (int)host.len, host.bytes);
    return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}

/* The CONNECT (spec dataplane, section 2.9). NULL if no more streams can be opened. */
static struct stream *request(struct conn *conn, struct text authority, struct h2 *h2) {
    const struct verdict *const verdict = conn->verdict;
    struct h2_field fields[FIELDS_MAX];
    char forwarded[512];
    char trace[TRACE_SIZE];
    size_t n = 0;
    for (size_t i = 0; i < verdict->n_headers && n < FIELDS_MAX - 2; i++) {
        if (conn->inner == NULL && text_equal(verdict->headers[i].name, text_of(INNER_ONLY))) {
            continue;
        }
        fields[n++] = (struct h2_field){verdict->headers[i].name, verdict->headers[i].value, false};
    }
    const size_t len = format_forwarded(conn, forwarded, sizeof(forwarded));
    trace_format(&conn->trace, trace);
    fields[n++] = (struct h2_field){text_of("forwarded"), {forwarded, len}, true};
    fields[n++] = (struct h2_field){text_of("traceparent"), {trace, TRACE_SIZE - 1}, true};
    return h2_connect(h2, authority, fields, n);
}

void outbound_tunnelled(struct conn *conn) {
    struct worker *const worker = conn->worker;
    conn->steps_ns[STEP_TUNNEL] = loop_clock_ns();
    conn_set_state(conn, CONN_REQUESTING);
    struct tunnel *const tunnel = conn->inner != NULL ? conn->inner : conn->tunnel;
    const struct text authority =
        conn->inner != NULL ? conn->hop->inner_authority : conn->hop->authority;
    struct stream *const stream = request(conn, authority, &tunnel->h2);
    if (stream == NULL) {
        conn_end(conn, REASON_H2, "no more streams can be opened on the tunnel");
        return;
    }
    stream->owner = conn;
    stream->ops = &STREAM_OPS;
    stream->wants_baggage = conn->inner != NULL;
    conn->stream = stream;
    conn->tunnel_id = tunnel->id;
    tunnel_flush_later(tunnel);
    if (!loop_arm(&worker->loop, &conn->timer, worker->core->config.handshake_timeout_ns)) {
        conn_end(conn, REASON_INTERNAL, "out of memory");
    }
}

static const char *status_phrase(unsigned status) {
    static const struct {
        unsigned status;
        const char *phrase;
    } KNOWN[] = {
        {100, "Continue"},
        {101, "Switching Protocols"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {206, "Partial Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {402, "Payment Required"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {407, "Proxy Authentication Required"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {410, "Gone"},
        {413, "Payload Too Large"},
        {421, "Misdirected Request"},
        {426, "Upgrade Required"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < ARRAY_LEN(KNOWN); i++) {
        if (KNOWN[i].status == status) {
            return KNOWN[i].phrase;
        }
    }
    return "<unknown status code>";
}

static void start(struct conn *conn) {
    if (conn_open_client(conn)) {
        conn_relay(conn, &conn->client.io, &conn->stream->io);
    }
}

/* Labels of whoever is behind the gateway, as the decider makes them; failing that, of whom we
 * meant to reach. */
static void known(struct conn *conn, struct verdict *verdict) {
    const struct addr gateway = conn->hop->address;
    mem_free(conn->worker->mem, MEM_OTHER, conn->key);
    conn->key = NULL;
    if (verdict->action == VERDICT_FORWARD && verdict->n_hops > 0) {
        verdict_unref(conn->verdict);
        conn->verdict = verdict;
        conn->hop = &verdict->hops[0];
    } else {
        verdict_unref(verdict);
    }
    conn_opened(conn, conn->hop, &gateway);
    start(conn);
}

static void ask_who_answered(struct conn *conn, struct stream *stream) {
    const struct key_request from = {
        .identity = tunnel_identity(conn->inner),
        .baggage = stream->request != NULL ? stream->request->baggage : NULL,
        .n_baggage = stream->request != NULL ? stream->request->n_baggage : 0,
    };
    const size_t size = key_request_size(&from);
    conn->key = mem_alloc(conn->worker->mem, MEM_OTHER, size);
    if (conn->key != NULL) {
        conn->key_len = key_pack_remote(&conn->original_dst, &from, conn->key, size);
    }
    if (conn->key == NULL || conn->key_len == 0) {
        conn_end(conn, REASON_INTERNAL, "out of memory");
        return;
    }
    conn_set_state(conn, CONN_ASKING);
    relay_set_upstream(&conn->relay, &stream->io); /* what comes early is held */
    conn_ask(conn, KEY_REMOTE, known);
}

static void responded(struct stream *stream, unsigned status) {
    struct conn *const conn = stream->owner;
    if (status != 200) {
        char detail[96];
        (void)snprintf(detail, sizeof(detail), "%u %s", status, status_phrase(status));
        conn_end(conn, REASON_BAD_STATUS, detail);
        return;
    }
    if (conn->hop->protocol == HOP_DOUBLE_HBONE && conn->inner == NULL) {
        loop_disarm(&conn->worker->loop, &conn->timer);
        conn_set_state(conn, CONN_TUNNELLING);
        conn->stream = NULL;
        tunnel_lease_inner(conn, stream);
        return;
    }
    if (conn->opens_late) {
        ask_who_answered(conn, stream);
        return;
    }
    start(conn);
}

/* The tunnel was going away just as it was chosen: the stream was not served, nothing of the user's
 * was sent, so another tunnel is tried. Not so if the other side broke the protocol. */
static bool retry(struct conn *conn) {
    struct tunnel *const tunnel = conn->tunnel;
    if (conn->inner != NULL || conn->tunnel_reused != 1 || tunnel_is_usable(tunnel) ||
        conn->tries >= RETRIES_MAX || tunnel->h2.is_over) {
        return false;
    }
    conn->tries++;
    struct stream *const stream = conn->stream;
    conn->stream = NULL;
    stream->io.ops->close(&stream->io);
    loop_disarm(&conn->worker->loop, &conn->timer);
    conn->tunnel = NULL;
    tunnel_give_back(tunnel);
    conn_set_state(conn, CONN_TUNNELLING);
    tunnel_lease(conn);
    return true;
}

static void broke(struct stream *stream, struct io_error error) {
    struct conn *const conn = stream->owner;
    if (retry(conn)) {
        return;
    }
    char detail[160];
    if (error.is_reset) {
        (void)snprintf(detail, sizeof(detail), "stream reset: %s",
                       nghttp2_http2_strerror(error.code));
    } else {
        conn_error_text(error.number, detail, sizeof(detail));
    }
    conn_end(conn, REASON_H2, detail);
}
