/* SPDX-License-Identifier: Apache-2.0 */
/* Life of an inbound stream and of a plaintext connection, in flow order.
 *
 * HBONE (15008)
 * 1. TLS: the client must prove an identity of our trust domain (tunnel.c)
 * 2. HTTP/2: each CONNECT stream is a connection of its own
 * 3. the verdict: is this address ours, may this identity go there
 * 4. the application is dialled, from the client's own address where the kernel lets us
 * 5. 200, and only now; then relayed until both directions are over
 *
 * Plaintext (15006): the same without 1, 2 and 5, and without an identity.
 */
#include "inbound.h"

#include <stdio.h>
#include <unistd.h>

#include "core_state.h"
#include "preface.h"
#include "tunnel.h"

#define PREFACE_MAX 2048

static void decided(struct conn *conn, struct verdict *verdict);
static void broke(struct stream *stream, struct io_error error);

static const struct stream_ops STREAM_OPS = {.responded = NULL, .broke = broke};

/* --- 2 --- */

static bool pack_key(struct conn *conn, const struct tunnel *tunnel,
                     const struct h2_request *request) {
    const struct key_request from = {
        .local = tunnel->local,
        .src = tunnel->remote,
        .identity = tunnel_identity(tunnel),
        .authority = request->authority,
        .forwarded = request->forwarded,
        .has_network = request->has_network,
        .network = request->network,
        .baggage = request->baggage,
        .n_baggage = request->n_baggage,
    };
    const size_t size = key_request_size(&from);
    conn->key = mem_alloc(conn->worker->mem, MEM_OTHER, size);
    if (conn->key == NULL) {
        return false;
    }
    conn->key_len = key_pack_request(&from, conn->key, size);
    return conn->key_len > 0;
}

void inbound_requested(struct tunnel *tunnel, struct stream *stream,
                       const struct h2_request *request) {
    struct conn *const conn = conn_create(tunnel->worker, tunnel->workload, KEY_INBOUND, -1,
                                          &tunnel->remote, &tunnel->local);
    if (conn == NULL) {
        h2_reset(stream, NGHTTP2_REFUSED_STREAM);
        return;
    }
    stream->owner = conn;
    stream->ops = &STREAM_OPS;
    conn->stream = stream;
    conn->tunnel_id = tunnel->id;
    if (trace_is_known(&request->trace)) {
        conn->trace = request->trace;
    }
    relay_set_client(&conn->relay, &stream->io); /* what comes early is held */
    char method[64];
    if (!text_equal(request->method, text_of("CONNECT"))) {
        (void)snprintf(method, sizeof(method), "%.*s", (int)request->method.len,
                       request->method.len > 0 ? request->method.bytes : "");
        conn_end(conn, REASON_BAD_METHOD, method);
        return;
    }
    if (!conn_keep_authority(conn, request->authority) || !pack_key(conn, tunnel, request)) {
        conn_end(conn, REASON_INTERNAL, "out of memory");
        return;
    }
    conn_ask(conn, KEY_INBOUND, decided);
}

/* It was reset before its response, or its tunnel is gone. */
static void broke(struct stream *stream, struct io_error error) {
    (void)error;
    conn_end(stream->owner, REASON_H2, "the stream was reset before its response");
}

/* --- plaintext --- */

void inbound_accepted(struct worker *worker, struct workload *workload, int fd,
                      const struct addr *src, const struct addr *dst) {
    conn_captured(worker, workload, KEY_PASSTHROUGH, fd, src, dst, decided);
}

/* --- 3 to 5 --- */

/* The header that an application tunnel begins with; a fresh socket takes it whole. */
static bool send_preface(struct conn *conn) {
    const struct verdict *const verdict = conn->verdict;
    if (!verdict->has_preface) {
        return true;
    }
    uint8_t bytes[PREFACE_MAX];
    struct text identity = {"", 0};
    if (conn->stream != NULL && conn->stream->h2 != NULL) {
        identity = tunnel_identity(CONTAINER_OF(conn->stream->h2, struct tunnel, h2));
    }
    const size_t len =
        preface_proxy_v2(&conn->src, &verdict->preface_target, identity, bytes, sizeof(bytes));
    const struct iovec iov = {.iov_base = bytes, .iov_len = len};
    struct io *const app = &conn->upstream.io;
    return len > 0 && app->ops->offer(app, &iov, 1, len) == len;
}

static void connected(struct conn *conn) {
    if (!send_preface(conn)) {
        conn_end(conn, REASON_INTERNAL, "the PROXY header could not be sent");
        return;
    }
    if (conn->stream != NULL) {
        h2_respond(conn->stream, 200, conn->verdict->headers, conn->verdict->n_headers);
        conn_relay(conn, &conn->stream->io, &conn->upstream.io);
        return;
    }
    if (!conn_open_client(conn)) {
        return;
    }
    conn_relay(conn, &conn->client.io, &conn->upstream.io);
}

static void decided(struct conn *conn, struct verdict *verdict) {
    struct worker *const worker = conn->worker;
    if (verdict->action == VERDICT_DENY) {
        if (verdict->n_hops > 0) {
            conn->app = verdict->hops[0].address;
        }
        conn_refuse(conn, &conn->original_dst);
        return;
    }
    if (verdict->action == VERDICT_PUNT || verdict->n_hops == 0) {
        stats_count(&worker->stats, EVENT_punted);
        conn_end(conn, REASON_INTERNAL, "nobody serves this connection");
        return;
    }
    const struct hop *const hop = verdict_draw(verdict, worker_random(worker));
    conn->app = hop->address;
    conn_opened(conn, hop, &conn->original_dst);
    const enum core_role role = conn->kind == KEY_INBOUND ? CORE_INBOUND : CORE_PASSTHROUGH;
    const bool as_client = hop->keep_source && conn->workload->listeners[role].is_transparent;
    conn_dial(conn, &hop->address, as_client, connected, REASON_APP_CONNECT);
}
