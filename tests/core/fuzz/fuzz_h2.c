/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes h2.c: any bytes may come from the other side, as a server and as a client.
 *
 * Input: flags (1: client; 2: the preface and SETTINGS come first; 4: no stream is answered), a
 * seed of what its owner does meanwhile, then what the other side sends, cut at random. Nothing is
 * sent while bytes are read, a sink hears nothing behind its last word, and nothing is left in the
 * end.
 */
#include <stdlib.h>

#include "h2.h"

#define STREAMS_MOST 64
#define CLIENT 1
#define GREETED 2
#define SILENT 4

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* What a stream is carried by: the connection and its sink in one. */
struct carrier {
    struct sink sink;
    struct stream *stream; /* NULL: it has let go */
    size_t held;           /* bytes received and not consumed */
    bool has_ended;
    bool has_failed;
};

static struct mem mem;
static struct loop loop;
static struct h2 h2;
static struct carrier carriers[STREAMS_MOST];
static size_t n_carriers;
static uint64_t seed;
static unsigned flags;

static void demand(bool is_so) {
    if (!is_so) {
        abort();
    }
}

static uint32_t draw(uint32_t below) {
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33) % below;
}

/* --- the stream's owner --- */

static size_t room(struct sink *sink) {
    (void)sink;
    return SIZE_MAX;
}

static struct carrier *of(struct sink *sink) {
    struct carrier *const carrier = CONTAINER_OF(sink, struct carrier, sink);
    demand(carrier->stream != NULL && !carrier->has_failed);
    return carrier;
}

static void received(struct sink *sink, const struct iovec *iov, int n, size_t total) {
    struct carrier *const carrier = of(sink);
    size_t sum = 0;
    demand(!carrier->has_ended);
    for (int i = 0; i < n; i++) {
        sum += iov[i].iov_len;
    }
    demand(sum == total);
    if (draw(2) == 0) {
        carrier->stream->io.ops->consumed(&carrier->stream->io, total);
    } else {
        carrier->held += total;
    }
}

static void ended(struct sink *sink) {
    of(sink)->has_ended = true; /* may be said again when the stream breaks */
}

static void failed(struct sink *sink, struct io_error error) {
    struct carrier *const carrier = of(sink);
    demand(error.is_reset || error.number != 0);
    carrier->has_failed = true;
}

static void let_go(struct carrier *carrier) {
    struct stream *const stream = carrier->stream;
    carrier->stream = NULL;
    stream->io.ops->close(&stream->io);
}

static void offer(struct carrier *carrier) {
    static uint8_t frame[H2_FRAME_HEADER + 20000];
    struct io *const io = &carrier->stream->io;
    const struct iovec iov = {frame + H2_FRAME_HEADER, 1 + draw(20000)};
    io->end_follows = draw(4) == 0;
    const size_t taken = io->ops->offer(io, &iov, 1, iov.iov_len);
    demand(taken <= iov.iov_len);
    io->end_follows = false;
}

static void writable(struct sink *sink) {
    struct carrier *const carrier = of(sink);
    if (draw(2) == 0 && !carrier->stream->io.is_broken) {
        offer(carrier);
    }
}

static const struct sink_ops SINK_OPS = {
    .room = room, .received = received, .ended = ended, .failed = failed, .writable = writable};

static void responded(struct stream *stream, unsigned status) {
    struct carrier *const carrier = stream->owner;
    demand(carrier->stream == stream && status >= 200);
    if (status != 200) {
        let_go(carrier);
    } else {
        stream->is_started = true;
        stream->io.sink = &carrier->sink;
    }
}

static void broke(struct stream *stream, struct io_error error) {
    struct carrier *const carrier = stream->owner;
    demand(carrier->stream == stream && (error.is_reset || error.number != 0));
    let_go(carrier);
}

static const struct stream_ops STREAM_OPS = {.responded = responded, .broke = broke};

static bool carry(struct stream *stream) {
    if (n_carriers == STREAMS_MOST) {
        return false;
    }
    struct carrier *const carrier = &carriers[n_carriers++];
    *carrier = (struct carrier){.sink.ops = &SINK_OPS, .stream = stream};
    stream->owner = carrier;
    stream->ops = &STREAM_OPS;
    return true;
}

/* --- what HTTP/2 reports --- */

static void emit(struct h2 *which, const uint8_t *bytes, size_t len) {
    demand(which == &h2 && !h2.is_receiving);
    for (size_t i = 0; i < len; i++) {
        seed += bytes[i]; /* all of it can be read */
    }
}

static void emit_data(struct h2 *which, const uint8_t *header, uint8_t *payload, size_t len) {
    demand(len <= IO_READ_MAX);
    memcpy(payload - H2_FRAME_HEADER, header, H2_FRAME_HEADER);
    emit(which, payload - H2_FRAME_HEADER, H2_FRAME_HEADER + len);
}

static bool is_within(const struct h2_request *request, struct text text) {
    return text.len == 0 ||
           (text.bytes >= request->bytes && text.bytes + text.len <= request->bytes + request->len);
}

static void requested(struct h2 *which, struct stream *stream, const struct h2_request *request) {
    demand(which == &h2 && !h2.is_client);
    demand(is_within(request, request->method) && is_within(request, request->authority));
    demand(is_within(request, request->forwarded) && is_within(request, request->network));
    for (size_t i = 0; i < request->n_baggage; i++) {
        demand(is_within(request, request->baggage[i]));
    }
    if (!carry(stream)) {
        h2_reset(stream, NGHTTP2_REFUSED_STREAM);
        return;
    }
    struct carrier *const carrier = stream->owner;
    switch (draw((flags & SILENT) != 0 ? 1 : 4)) {
    case 0: /* waits for a verdict */
        stream->io.sink = &carrier->sink;
        break;
    case 1:
        h2_respond(stream, 403, NULL, 0);
        let_go(carrier);
        break;
    case 2:
        h2_reset(stream, NGHTTP2_CANCEL);
        let_go(carrier);
        break;
    default:
        stream->io.sink = &carrier->sink;
        h2_respond(stream, 200, NULL, 0);
        stream->is_started = true;
        break;
    }
}

static void data(struct h2 *which, struct stream *stream, const uint8_t *bytes, size_t len) {
    const struct iovec iov = {(void *)(uintptr_t)bytes, len};
    demand(which == &h2 && stream->owner != NULL);
    if (stream->io.sink != NULL) {
        stream->io.sink->ops->received(stream->io.sink, &iov, 1, len);
    } else {
        h2_consumed(stream, len);
    }
}

static void settle(struct h2 *which, struct stream *stream) {
    (void)which;
    (void)stream;
}

static void closed(struct h2 *which) {
    (void)which;
}

static void ping_acked(struct h2 *which, bool is_drain) {
    if (is_drain) {
        h2_refuse(which);
    }
}

static void went_away(struct h2 *which) {
    (void)which;
}

/* Lets streams that waited write, as a tunnel does between its reads. */
static bool must_unblock;

static void windows_opened(struct h2 *which) {
    (void)which;
    must_unblock = true;
}

static void wake(struct h2 *which) {
    (void)which;
}

static const struct h2_ops OPS = {
    .emit = emit,
    .emit_data = emit_data,
    .requested = requested,
    .data = data,
    .settle = settle,
    .closed = closed,
    .ping_acked = ping_acked,
    .went_away = went_away,
    .windows_opened = windows_opened,
    .wake = wake,
};

/* --- what happens between two reads --- */

static void unblock(void) {
    struct list now;
    struct list *node;
    must_unblock = false;
    list_init(&now);
    list_splice(&now, &h2.blocked);
    while ((node = list_pop(&now)) != NULL) {
        stream_unblock(CONTAINER_OF(node, struct stream, blocked));
    }
}

static void act_on(struct carrier *carrier) {
    struct io *const io = &carrier->stream->io;
    switch (draw(5)) {
    case 0:
        if (carrier->stream->is_started) {
            offer(carrier);
        }
        break;
    case 1:
        io->ops->consumed(io, carrier->held);
        carrier->held = 0;
        break;
    case 2:
        if (carrier->stream->is_started) {
            io->ops->end(io, draw(2) == 0);
        }
        break;
    case 3:
        if (!h2.is_client && io->sink != NULL && !io->is_broken && !carrier->stream->is_started) {
            h2_respond(carrier->stream, 200, NULL, 0);
            carrier->stream->is_started = true;
        }
        break;
    default:
        if (draw(4) == 0) {
            let_go(carrier);
        }
        break;
    }
}

static bool act(void) {
    if (must_unblock) {
        unblock();
    }
    if (n_carriers > 0) {
        struct carrier *const carrier = &carriers[draw((uint32_t)n_carriers)];
        if (carrier->stream != NULL && !carrier->has_failed) {
            act_on(carrier);
        }
    }
    switch (draw(16)) {
    case 0:
        h2_ping(&h2, draw(2) == 0);
        break;
    case 1:
        h2_goaway(&h2, H2_LAST_STREAM);
        break;
    default:
        break;
    }
    const bool is_alive = draw(3) == 0 || h2_flush(&h2);
    loop_turn(&loop, 0);
    return is_alive;
}

static void connect_some(void) {
    static const char BAGGAGE[] = "k8s.cluster.name=Kubernetes";
    const struct h2_field fields[] = {
        {text_of("baggage"), text_of(BAGGAGE), false},
        {text_of("forwarded"), text_of("for=\"10.0.0.1:5\""), true},
    };
    for (int i = 0; i < 4; i++) {
        struct stream *const stream =
            h2_connect(&h2, text_of("10.1.1.5:8080"), fields, ARRAY_LEN(fields));
        if (stream != NULL) {
            demand(carry(stream));
        }
    }
}

static void greet(void) {
    static const uint8_t HELLO[] = NGHTTP2_CLIENT_MAGIC "\0\0\0\4\0\0\0\0";
    const size_t skip = h2.is_client ? NGHTTP2_CLIENT_MAGIC_LEN : 0;
    demand(h2_receive(&h2, HELLO + skip, sizeof(HELLO) - skip));
}

static void stop(void) {
    for (struct list *node = h2.streams.next; node != &h2.streams;) {
        struct stream *const stream = CONTAINER_OF(node, struct stream, link);
        node = node->next;
        stream_break(stream, (struct io_error){.number = 32}, false);
    }
    h2_close(&h2);
    for (size_t i = 0; i < n_carriers; i++) {
        if (carriers[i].stream != NULL) {
            let_go(&carriers[i]);
        }
    }
    loop_turn(&loop, 0);
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        demand(kind == MEM_CORE || mem.live[kind] == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len) {
    const struct core_config config = {
        .stream_window = 100000,
        .connection_window = 400000,
        .frame_size = 1 << 20,
        .max_streams_served = 8,
    };
    if (len < 2) {
        return 0;
    }
    if (loop.mem == NULL) {
        demand(loop_open(&loop, &mem, true));
    }
    flags = bytes[0];
    seed = bytes[1];
    n_carriers = 0;
    must_unblock = false;
    demand(h2_open(&h2, &OPS, &loop, &config, (flags & CLIENT) != 0));
    if (h2.is_client) {
        connect_some();
    }
    if ((flags & GREETED) != 0) {
        greet();
    }
    bool is_alive = h2_flush(&h2);
    for (size_t at = 2; at < len && is_alive;) {
        const size_t most = len - at < 1000 ? len - at : 1000;
        const size_t n = draw(2) == 0 ? most : 1 + draw((uint32_t)most);
        is_alive = h2_receive(&h2, bytes + at, n) && act();
        at += n;
    }
    stop();
    return 0;
}
