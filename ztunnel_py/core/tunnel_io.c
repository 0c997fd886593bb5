/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a tunnel: wire in, through TLS and HTTP/2, to its streams; and the way out. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "conn.h"
#include "core_state.h"
#include "inbound.h"
#include "tunnel.h"

#define JOINED_MAX ((size_t)8192) /* frames up to this size are copied to share a record */
/* Encrypted bytes that do not wait for the end of the turn. */
#define SEND_AT ((size_t)(128 * 1024))
#define UNSENT_HIGH ((size_t)(1 << 20)) /* unsent bytes above which streams have to wait */
#define UNSENT_MAX ((size_t)(4 << 20))  /* a remote side that never reads is given up */
/* Small frames that wait for each other; then the other side can begin. */
#define JOINED_FRAMES 16
#define PIECES 16

static struct tunnel *of(struct h2 *h2) {
    return CONTAINER_OF(h2, struct tunnel, h2);
}

/* --- the way out --- */

static void encrypt(struct tunnel *tunnel, const uint8_t *bytes, size_t len) {
    if (!tunnel->is_broken && len > 0 && !tls_write(&tunnel->tls, bytes, len)) {
        tunnel->is_broken = true;
        tunnel_flush_later(tunnel);
    }
}

/* Small frames that gathered leave as one record. */
void tunnel_flush_plain(struct tunnel *tunnel) {
    struct block *const plain = tunnel->plain;
    tunnel->n_joined = 0;
    if (plain != NULL) {
        tunnel->plain = NULL;
        encrypt(tunnel, plain->bytes, plain->end);
        stock_give(tunnel->worker->mem, &tunnel->worker->plains, plain);
    }
}

static void join(struct tunnel *tunnel, const uint8_t *bytes, size_t len) {
    struct worker *const worker = tunnel->worker;
    while (len > 0 && !tunnel->is_broken) {
        if (tunnel->plain == NULL) {
            tunnel->plain = stock_take(worker->mem, &worker->plains);
            if (tunnel->plain == NULL) {
                encrypt(tunnel, bytes, len);
                return;
            }
        }
        struct block *const plain = tunnel->plain;
        const size_t room = plain->size - plain->end;
        const size_t n = len < room ? len : room;
        memcpy(plain->bytes + plain->end, bytes, n);
        plain->end += n;
        bytes += n;
        len -= n;
        if (plain->end == plain->size) {
            tunnel_flush_plain(tunnel);
        }
    }
}

static void emit(struct h2 *h2, const uint8_t *bytes, size_t len) {
    join(of(h2), bytes, len);
    tunnel_flush_later(of(h2));
}

static void emit_data(struct h2 *h2, const uint8_t *header, uint8_t *payload, size_t len) {
    struct tunnel *const tunnel = of(h2);
    if (len <= JOINED_MAX) {
        join(tunnel, header, H2_FRAME_HEADER);
        join(tunnel, payload, len);
        if (++tunnel->n_joined >= JOINED_FRAMES) {
            tunnel_flush_plain(tunnel);
            tunnel_send(tunnel);
        }
    } else {
        tunnel_flush_plain(tunnel);
        uint8_t *const frame = payload - H2_FRAME_HEADER;
        memcpy(frame, header, H2_FRAME_HEADER);
        encrypt(tunnel, frame, len + H2_FRAME_HEADER);
        if (tunnel->tls.out_len >= SEND_AT) {
            tunnel_send(tunnel);
        }
    }
    tunnel_flush_later(tunnel);
}

static size_t offer_wire(struct tunnel *tunnel, const struct iovec *iov, int n, size_t total) {
    if (tunnel->under != NULL) {
        return tunnel->under->ops->offer(tunnel->under, iov, n, total);
    }
    const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov,
                                   .msg_iovlen = (size_t)n};
    ssize_t sent;
    do {
        sent = sendmsg(tunnel->fd, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno != EAGAIN) {
        tunnel->is_broken = true;
        return total; /* it is of no use any more */
    }
    return sent < 0 ? 0 : (size_t)sent;
}

/* Streams wait from UNSENT_HIGH on until half of that is left: set and taken back here only, so
 * that whoever was told to wait is told to go on. */
static void weigh(struct tunnel *tunnel) {
    const size_t unsent = tunnel->tls.out_len;
    if (!tunnel->h2.is_congested) {
        tunnel->h2.is_congested = unsent >= UNSENT_HIGH;
    } else if (unsent < UNSENT_HIGH / 2) {
        tunnel->h2.is_congested = false;
        tunnel->must_unblock = true;
        tunnel_flush_later(tunnel);
    }
    if (unsent > UNSENT_MAX) {
        tunnel->is_broken = true;
        tunnel_flush_later(tunnel);
    }
}

void tunnel_send(struct tunnel *tunnel) {
    struct iovec iov[PIECES];
    while (tunnel->tls.out_len > 0 && tunnel->stalled_since == 0) {
        const int n = tls_out(&tunnel->tls, iov, PIECES);
        size_t total = 0;
        for (int i = 0; i < n; i++) {
            total += iov[i].iov_len;
        }
        const size_t taken = offer_wire(tunnel, iov, n, total);
        tls_sent(&tunnel->tls, taken);
        if (taken < total) {
            tunnel->stalled_since = tunnel->worker->loop.now_ns;
        }
    }
    weigh(tunnel);
}

/* The transport takes bytes again. */
static void writable(struct tunnel *tunnel) {
    if (tunnel->stalled_since == 0) {
        return;
    }
    tunnel->stalled_since = 0;
    tunnel_send(tunnel);
    tunnel_flush_later(tunnel);
}

/* Lets streams that waited write again, each once. */
static void unblock(struct tunnel *tunnel) {
    struct list now;
    struct list *node;
    tunnel->must_unblock = false;
    list_init(&now);
    list_splice(&now, &tunnel->h2.blocked);
    while ((node = list_pop(&now)) != NULL) {
        struct stream *const stream = CONTAINER_OF(node, struct stream, blocked);
        if (h2_window(stream) > 0) {
            stream_unblock(stream);
        } else {
            list_push(&tunnel->h2.blocked, &stream->blocked);
        }
    }
}

static void flush(struct deferred *deferred) {
    struct tunnel *const tunnel = CONTAINER_OF(deferred, struct tunnel, flush);
    if (tunnel->state == TUNNEL_OPEN) {
        if (tunnel->must_unblock) {
            unblock(tunnel);
        }
        tunnel->is_flushing = true;
        const bool is_alive = h2_flush(&tunnel->h2);
        tunnel_flush_plain(tunnel);
        tunnel_send(tunnel);
        tunnel->is_flushing = false;
        if (tunnel->is_broken || !is_alive) {
            tunnel_shut(tunnel, false, REASON_H2, NULL);
            return;
        }
        if (tunnel->must_unblock) {
            tunnel_flush_later(tunnel);
        }
        tunnel_settle(tunnel);
    } else if (tunnel->state == TUNNEL_SHAKING || tunnel->state == TUNNEL_CLOSING) {
        tunnel_send(tunnel);
        if (tunnel->state == TUNNEL_CLOSING && (tunnel->tls.out_len == 0 || tunnel->is_broken)) {
            tunnel_finished(tunnel);
        }
    }
}

void tunnel_flush_later(struct tunnel *tunnel) {
    if (tunnel->is_flushing) {
        return;
    }
    loop_defer_flush(&tunnel->worker->loop, &tunnel->flush);
}

/* --- the way in --- */

/* Pushes on what was gathered for one stream, in one go. */
static void push(struct tunnel *tunnel) {
    struct stream *const stream = tunnel->pushing;
    if (stream == NULL) {
        return;
    }
    tunnel->pushing = NULL;
    struct sink *const sink = stream->io.sink;
    if (sink != NULL) {
        sink->ops->received(sink, tunnel->gathered, tunnel->n_gathered, tunnel->gathered_len);
    } else if (stream->h2 != NULL) {
        h2_consumed(stream, tunnel->gathered_len);
    }
}

static void gather(struct h2 *h2, struct stream *stream, const uint8_t *bytes, size_t len) {
    struct tunnel *const tunnel = of(h2);
    if (tunnel->pushing != stream || tunnel->n_gathered == (int)ARRAY_LEN(tunnel->gathered)) {
        push(tunnel);
        tunnel->pushing = stream;
        tunnel->n_gathered = 0;
        tunnel->gathered_len = 0;
    }
    struct iovec *const iov = &tunnel->gathered[tunnel->n_gathered++];
    iov->iov_base = (void *)(uintptr_t)bytes;
    iov->iov_len = len;
    tunnel->gathered_len += len;
}

static void settle(struct h2 *h2, struct stream *stream) {
    if (of(h2)->pushing == stream) {
        push(of(h2));
    }
}

static bool is_over(const struct tunnel *tunnel) {
    return tunnel->state == TUNNEL_CLOSING || tunnel->state == TUNNEL_CLOSED;
}

static void read_plain(struct tunnel *tunnel) {
    struct worker *const worker = tunnel->worker;
    for (;;) {
        size_t n = 0;
        switch (tls_read(&tunnel->tls, worker->plain_in, PLAIN_SIZE, &n)) {
        case TLS_DONE: {
            const bool is_alive = h2_receive(&tunnel->h2, worker->plain_in, n);
            push(tunnel);
            tunnel_flush_later(tunnel);
            if (!is_alive) {
                (void)h2_flush(&tunnel->h2); /* its GOAWAY */
                tunnel_flush_plain(tunnel);
                tunnel_shut(tunnel, false, REASON_H2, NULL);
            }
            if (is_over(tunnel)) {
                return;
            }
            break;
        }
        case TLS_MORE:
            return;
        case TLS_CLOSED:
        case TLS_FAILED:
            tunnel_shut(tunnel, false, REASON_H2, NULL);
            return;
        }
    }
}

/* Wire bytes arrived. */
static void received(struct tunnel *tunnel, const uint8_t *bytes, size_t len) {
    if (tunnel->tls.ssl == NULL && !tunnel_begin_tls(tunnel)) {
        tunnel_abort(tunnel, REASON_TLS_HANDSHAKE, "out of memory");
        return;
    }
    tls_feed(&tunnel->tls, bytes, len);
    if (tunnel->state == TUNNEL_SHAKING) {
        char problem[IDENT_ERROR_SIZE + 64];
        switch (tls_shake(&tunnel->tls)) {
        case TLS_DONE:
            tunnel_established(tunnel);
            break;
        case TLS_MORE:
            tunnel_flush_later(tunnel);
            return;
        default:
            if (tls_was_revoked(&tunnel->tls)) {
                tunnel_count_revoked(tunnel);
            }
            tls_problem(&tunnel->tls, problem, sizeof(problem));
            tunnel_shut(tunnel, false, tunnel->is_client ? REASON_IO : REASON_TLS_HANDSHAKE,
                        problem);
            return;
        }
    }
    if (tunnel->state == TUNNEL_OPEN) {
        read_plain(tunnel);
    }
    tunnel_flush_later(tunnel);
}

/* The transport ended, or broke with an errno. */
static void lost(struct tunnel *tunnel, int error) {
    char problem[160] = "the client hung up";
    tunnel->can_read = false;
    if (tunnel->is_client) {
        conn_error_text(error == 0 ? EPIPE : error, problem, sizeof(problem));
    }
    if (error != 0) {
        tunnel_abort(tunnel, tunnel->is_client ? REASON_IO : REASON_TLS_HANDSHAKE, problem);
    } else {
        tunnel_shut(tunnel, false, tunnel->is_client ? REASON_IO : REASON_TLS_HANDSHAKE, problem);
    }
}

static bool is_reading(const struct tunnel *tunnel) {
    return tunnel->can_read && tunnel->fd >= 0 &&
           (tunnel->state == TUNNEL_SHAKING || tunnel->state == TUNNEL_OPEN);
}

/* One buffer a turn, so that everybody gets a turn. */
static void pump(struct tunnel *tunnel) {
    if (!is_reading(tunnel)) {
        return;
    }
    const ssize_t n = recv(tunnel->fd, tunnel->worker->wire_in, WIRE_SIZE, 0);
    if (n > 0) {
        /* A short read has emptied the socket, unless an end is behind it. */
        tunnel->can_read = (size_t)n == WIRE_SIZE || tunnel->saw_hup;
        received(tunnel, tunnel->worker->wire_in, (size_t)n);
        if (is_reading(tunnel)) {
            loop_defer(&tunnel->worker->loop, &tunnel->read_more);
        }
    } else if (n == 0) {
        lost(tunnel, 0);
    } else if (errno == EAGAIN) {
        tunnel->can_read = false;
    } else if (errno != EINTR) {
        lost(tunnel, errno);
    }
}

static void ready(struct watch *watch, uint32_t events) {
    struct tunnel *const tunnel = CONTAINER_OF(watch, struct tunnel, watch);
    if (tunnel->state == TUNNEL_DIALLING) {
        tunnel_connected(tunnel, events);
        return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        tunnel->saw_hup = true;
    }
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        tunnel->can_read = true;
    }
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        writable(tunnel);
    }
    pump(tunnel);
}

/* --- the transport is a stream of another tunnel (double HBONE) --- */

static struct tunnel *under(struct sink *sink) {
    return CONTAINER_OF(sink, struct tunnel, sink);
}

static size_t under_room(struct sink *sink) {
    (void)sink;
    return SIZE_MAX;
}

/* Kept until the outer tunnel is done with its buffers, which are also ours. */
static void under_received(struct sink *sink, const struct iovec *iov, int n, size_t total) {
    struct tunnel *const tunnel = under(sink);
    (void)total;
    for (int i = 0; i < n; i++) {
        if (!queue_add(tunnel->worker->mem, &tunnel->inbox, iov[i].iov_base, iov[i].iov_len)) {
            tunnel->under_error = ENOMEM;
            tunnel->has_under_ended = true;
        }
    }
    loop_defer(&tunnel->worker->loop, &tunnel->read_more);
}

static void under_ended(struct sink *sink) {
    under(sink)->has_under_ended = true;
    loop_defer(&under(sink)->worker->loop, &under(sink)->read_more);
}

static void under_failed(struct sink *sink, struct io_error error) {
    under(sink)->under_error = error.is_reset || error.number == 0 ? EPIPE : error.number;
    under_ended(sink);
}

static void under_writable(struct sink *sink) {
    writable(under(sink));
}

/* Takes what the outer tunnel has brought. */
static void pump_under(struct tunnel *tunnel) {
    struct mem *const mem = tunnel->worker->mem;
    struct iovec piece;
    while (queue_peek(&tunnel->inbox, &piece, 1) == 1 && !is_over(tunnel)) {
        received(tunnel, piece.iov_base, piece.iov_len);
        queue_drop(mem, &tunnel->inbox, piece.iov_len);
        if (tunnel->under != NULL) {
            tunnel->under->ops->consumed(tunnel->under, piece.iov_len);
        }
    }
    if (tunnel->has_under_ended && !is_over(tunnel)) {
        lost(tunnel, tunnel->under_error);
    }
}

static void read_more(struct deferred *deferred) {
    struct tunnel *const tunnel = CONTAINER_OF(deferred, struct tunnel, read_more);
    if (tunnel->fd >= 0) {
        pump(tunnel);
    } else {
        pump_under(tunnel);
    }
}

static const struct sink_ops UNDER_OPS = {
    .room = under_room,
    .received = under_received,
    .ended = under_ended,
    .failed = under_failed,
    .writable = under_writable,
};

/* --- HTTP/2 reports --- */

static void requested(struct h2 *h2, struct stream *stream, const struct h2_request *request) {
    inbound_requested(of(h2), stream, request);
}

static void closed(struct h2 *h2) {
    tunnel_flush_later(of(h2)); /* which closes it if that was the last one of one that is to go */
}

static void ping_acked(struct h2 *h2, bool is_drain) {
    tunnel_ponged(of(h2), is_drain);
}

static void went_away(struct h2 *h2) {
    struct tunnel *const tunnel = of(h2);
    if (tunnel->is_client) {
        tunnel->is_draining = true;
        pool_remove(tunnel);
    } else {
        tunnel->close_when_idle = true; /* a client that goes opens no more streams, that is all */
    }
    tunnel_flush_later(tunnel);
}

static void windows_opened(struct h2 *h2) {
    pool_sort(&of(h2)->worker->pool, of(h2));
    of(h2)->must_unblock = true;
    tunnel_flush_later(of(h2));
}

static void wake(struct h2 *h2) {
    tunnel_flush_later(of(h2));
}

const struct h2_ops tunnel_h2_ops = {
    .emit = emit,
    .emit_data = emit_data,
    .requested = requested,
    .data = gather,
    .settle = settle,
    .closed = closed,
    .ping_acked = ping_acked,
    .went_away = went_away,
    .windows_opened = windows_opened,
    .wake = wake,
};

void tunnel_io_init(struct tunnel *tunnel) {
    tunnel->watch.ready = ready;
    tunnel->watch.fd = -1;
    tunnel->sink.ops = &UNDER_OPS;
    deferred_init(&tunnel->read_more, read_more);
    deferred_init(&tunnel->flush, flush);
}
