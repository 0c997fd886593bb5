/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of HTTP/2 stand on: a client and a server whose bytes are carried by hand, their
 * streams' owners, a log of all frames, and frames written by hand. */
#ifndef ZT_H2_STAGE_H
#define ZT_H2_STAGE_H

#include "bytes.h"
#include "check.h"
#include "h2.h"

#define LEGS_MOST 256
#define LOG_SIZE ((size_t)(1 << 20))

/* The owner of one side of a stream, and its sink. */
struct leg {
    struct sink sink;
    struct stream *stream; /* NULL: it has let go */
    struct bytes heard;    /* the first bytes that came */
    unsigned status;
    unsigned n_writable;
    bool holds; /* does not consume what it hears */
    bool has_ended, has_failed, has_broken;
    struct io_error error;
};

/* Bytes sent, all of them; the beginning of each DATA frame only. */
struct frame_log {
    uint8_t at[LOG_SIZE];
    size_t len;
};

struct side {
    struct h2 h2;
    struct frame_log out; /* emitted and not yet carried over */
    struct frame_log log; /* frames of all time, without what DATA carries */
    struct leg legs[LEGS_MOST];
    size_t n_legs;
    char request[256]; /* the last one */
    unsigned n_requests, n_pongs, n_drain_pongs, n_goaways;
    bool must_unblock, is_dead;
    bool holds; /* for legs to come */
};

static struct mem mem;
static struct loop loop;
static struct side client, server;
static struct bytes wire; /* written by hand, for the server */

static const struct core_config H2_CONFIG = {
    .stream_window = 4 << 20,
    .connection_window = 16 << 20,
    .frame_size = 1 << 20,
    .max_streams_served = 100,
};

static inline struct side *side_of(struct h2 *h2) {
    return CONTAINER_OF(h2, struct side, h2);
}

static inline void log_put(struct frame_log *log, const void *bytes, size_t len) {
    CHECK(len <= sizeof(log->at) - log->len);
    memcpy(log->at + log->len, bytes, len);
    log->len += len;
}

/* --- legs --- */

static inline struct leg *leg_of(struct sink *sink) {
    struct leg *const leg = CONTAINER_OF(sink, struct leg, sink);
    CHECK(leg->stream != NULL && !leg->has_failed);
    return leg;
}

static inline size_t leg_room(struct sink *sink) {
    (void)sink;
    return SIZE_MAX;
}

static inline void leg_received(struct sink *sink, const struct iovec *iov, int n, size_t total) {
    struct leg *const leg = leg_of(sink);
    CHECK(!leg->has_ended);
    for (int i = 0; i < n; i++) {
        const size_t room = sizeof(leg->heard.at) - leg->heard.len;
        put_raw(&leg->heard, iov[i].iov_base, iov[i].iov_len < room ? iov[i].iov_len : room);
    }
    if (!leg->holds) {
        leg->stream->io.ops->consumed(&leg->stream->io, total);
    }
}

static inline void leg_ended(struct sink *sink) {
    leg_of(sink)->has_ended = true;
}

static inline void leg_failed(struct sink *sink, struct io_error error) {
    struct leg *const leg = leg_of(sink);
    leg->has_failed = true;
    leg->error = error;
}

static inline void leg_writable(struct sink *sink) {
    leg_of(sink)->n_writable++;
}

static const struct sink_ops LEG_OPS = {.room = leg_room,
                                        .received = leg_received,
                                        .ended = leg_ended,
                                        .failed = leg_failed,
                                        .writable = leg_writable};

static inline void let_go(struct leg *leg) {
    if (leg->stream != NULL) {
        struct stream *const stream = leg->stream;
        leg->stream = NULL;
        stream->io.ops->close(&stream->io);
    }
}

static inline void leg_responded(struct stream *stream, unsigned status) {
    struct leg *const leg = stream->owner;
    leg->status = status;
    if (status != 200) {
        let_go(leg);
    } else {
        stream->is_started = true;
        stream->io.sink = &leg->sink;
    }
}

static inline void leg_broke(struct stream *stream, struct io_error error) {
    struct leg *const leg = stream->owner;
    leg->has_broken = true;
    leg->error = error;
    let_go(leg);
}

static const struct stream_ops STREAM_OPS = {.responded = leg_responded, .broke = leg_broke};

static inline struct leg *carry(struct side *side, struct stream *stream) {
    CHECK(stream != NULL && side->n_legs < LEGS_MOST);
    struct leg *const leg = &side->legs[side->n_legs++];
    *leg = (struct leg){.sink.ops = &LEG_OPS, .stream = stream, .holds = side->holds};
    stream->owner = leg;
    stream->ops = &STREAM_OPS;
    return leg;
}

/* --- sessions --- */

static inline void on_emit(struct h2 *h2, const uint8_t *bytes, size_t len) {
    CHECK(!h2->is_receiving);
    log_put(&side_of(h2)->out, bytes, len);
}

static inline void on_emit_data(struct h2 *h2, const uint8_t *header, uint8_t *payload,
                                size_t len) {
    on_emit(h2, header, H2_FRAME_HEADER);
    on_emit(h2, payload, len);
}

static inline void append(char *to, size_t size, struct text text, bool has) {
    const size_t len = strlen(to);
    (void)snprintf(to + len, size - len, "%.*s ", has ? (int)text.len : 1,
                   has ? (text.len > 0 ? text.bytes : "") : "-");
}

static inline void on_requested(struct h2 *h2, struct stream *stream,
                                const struct h2_request *request) {
    struct side *const side = side_of(h2);
    const size_t size = sizeof(side->request);
    side->n_requests++;
    side->request[0] = '\0';
    append(side->request, size, request->method, request->has_method);
    append(side->request, size, request->authority, request->has_authority);
    append(side->request, size, request->forwarded, request->has_forwarded);
    append(side->request, size, request->network, request->has_network);
    for (size_t i = 0; i < request->n_baggage; i++) {
        append(side->request, size, request->baggage[i], true);
    }
    if (side->n_legs < LEGS_MOST) {
        stream->io.sink = &carry(side, stream)->sink;
    } /* else nobody cares for it */
}

static inline void on_stream_data(struct h2 *h2, struct stream *stream, const uint8_t *bytes,
                                  size_t len) {
    const struct iovec iov = {(void *)(uintptr_t)bytes, len};
    (void)h2;
    if (stream->io.sink != NULL) {
        stream->io.sink->ops->received(stream->io.sink, &iov, 1, len);
    } else {
        h2_consumed(stream, len);
    }
}

static inline void on_settle(struct h2 *h2, struct stream *stream) {
    (void)h2;
    (void)stream;
}

static inline void on_nothing(struct h2 *h2) {
    (void)h2;
}

static inline void on_ping_acked(struct h2 *h2, bool is_drain) {
    side_of(h2)->n_pongs += !is_drain;
    side_of(h2)->n_drain_pongs += is_drain;
}

static inline void on_went_away(struct h2 *h2) {
    side_of(h2)->n_goaways++;
}

static inline void on_windows_opened(struct h2 *h2) {
    side_of(h2)->must_unblock = true;
}

static const struct h2_ops H2_OPS = {
    .emit = on_emit,
    .emit_data = on_emit_data,
    .requested = on_requested,
    .data = on_stream_data,
    .settle = on_settle,
    .closed = on_nothing,
    .ping_acked = on_ping_acked,
    .went_away = on_went_away,
    .windows_opened = on_windows_opened,
    .wake = on_nothing,
};

static inline void set_up_with(const struct core_config *config) {
    memset(&client, 0, sizeof(client));
    memset(&server, 0, sizeof(server));
    wire.len = 0;
    CHECK(loop_open(&loop, &mem, true));
    CHECK(h2_open(&client.h2, &H2_OPS, &loop, config, true));
    CHECK(h2_open(&server.h2, &H2_OPS, &loop, config, false));
}

static inline void set_up(void) {
    set_up_with(&H2_CONFIG);
}

static inline void stop_side(struct side *side) {
    for (struct list *node = side->h2.streams.next;
         side->h2.session != NULL && node != &side->h2.streams;) {
        struct stream *const stream = CONTAINER_OF(node, struct stream, link);
        node = node->next;
        stream_break(stream, (struct io_error){.number = 32}, false);
    }
    h2_close(&side->h2);
    for (size_t i = 0; i < side->n_legs; i++) {
        let_go(&side->legs[i]);
    }
}

/* Nothing is left of anything. */
static inline void tear_down(void) {
    stop_side(&client);
    stop_side(&server);
    loop_turn(&loop, 0);
    loop_close(&loop);
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
}

/* --- carrying bytes --- */

static inline size_t frame_len(const uint8_t *frame) {
    return (size_t)frame[0] << 16 | (size_t)frame[1] << 8 | frame[2];
}

/* Keeps the frames that are about to be carried over, DATA without what it carries. */
static inline void log_frames(struct side *side) {
    size_t at = 0;
    if (side->out.len >= NGHTTP2_CLIENT_MAGIC_LEN &&
        memcmp(side->out.at, NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN) == 0) {
        at = NGHTTP2_CLIENT_MAGIC_LEN;
    }
    while (at < side->out.len) {
        const uint8_t *const frame = side->out.at + at;
        const size_t len = frame_len(frame);
        log_put(&side->log, frame, H2_FRAME_HEADER + (frame[3] == NGHTTP2_DATA ? 0 : len));
        at += H2_FRAME_HEADER + len;
    }
    CHECK_INT_EQ(at, side->out.len);
}

static inline void unblock(struct side *side) {
    struct list now;
    struct list *node;
    side->must_unblock = false;
    list_init(&now);
    list_splice(&now, &side->h2.blocked);
    while ((node = list_pop(&now)) != NULL) {
        struct stream *const stream = CONTAINER_OF(node, struct stream, blocked);
        if (h2_window(stream) > 0) {
            stream_unblock(stream);
        } else {
            list_push(&side->h2.blocked, &stream->blocked);
        }
    }
}

/* What one side has to say reaches the other in pieces; false if there was nothing. */
static inline bool carry_over(struct side *from, struct side *to, size_t piece) {
    static struct frame_log moving;
    if (from->must_unblock) {
        unblock(from);
    }
    from->is_dead = !h2_flush(&from->h2) || from->is_dead;
    log_frames(from);
    moving.len = from->out.len;
    memcpy(moving.at, from->out.at, moving.len);
    from->out.len = 0;
    for (size_t at = 0; at < moving.len && !to->is_dead;) {
        const size_t left = moving.len - at;
        const size_t n = left < piece ? left : piece;
        to->is_dead = !h2_receive(&to->h2, moving.at + at, n);
        at += n;
    }
    return moving.len > 0;
}

/* Until nobody has anything to say. */
static inline void exchange(size_t piece) {
    bool has_more = true;
    while (has_more) {
        has_more = carry_over(&client, &server, piece);
        has_more = carry_over(&server, &client, piece) || has_more;
        loop_turn(&loop, 0);
    }
}

static inline struct leg *open_stream(void) {
    return carry(&client, h2_connect(&client.h2, text_of("10.1.1.5:8080"), NULL, 0));
}

/* One more stream, answered: it has the same number on both sides. */
static inline void join(void) {
    (void)open_stream();
    exchange(SIZE_MAX);
    CHECK(server.n_legs > 0 && server.n_legs == client.n_legs);
    struct leg *const leg = &server.legs[server.n_legs - 1];
    h2_respond(leg->stream, 200, NULL, 0);
    leg->stream->is_started = true;
    exchange(SIZE_MAX);
    CHECK_INT_EQ(client.legs[client.n_legs - 1].status, 200);
}

static inline size_t offer(struct leg *leg, const char *bytes, size_t len, bool is_last) {
    struct io *const io = &leg->stream->io;
    const struct iovec iov = {(void *)(uintptr_t)bytes, len};
    io->end_follows = is_last;
    const size_t taken = io->ops->offer(io, &iov, 1, len);
    io->end_follows = false;
    return taken;
}

static inline void let_go_all(void) {
    for (size_t i = 0; i < LEGS_MOST; i++) {
        let_go(&client.legs[i]);
        let_go(&server.legs[i]);
    }
}

/* Starts to count legs, and frames, anew. */
static inline void forget_legs(void) {
    let_go_all();
    client.n_legs = 0;
    server.n_legs = 0;
    client.log.len = 0;
    server.log.len = 0;
}

/* --- frames by hand --- */

static inline void write_frame(uint8_t type, uint8_t flags, int32_t stream, const void *payload,
                               size_t len) {
    const uint8_t header[H2_FRAME_HEADER] = {
        (uint8_t)(len >> 16),
        (uint8_t)(len >> 8),
        (uint8_t)len,
        type,
        flags,
        (uint8_t)(stream >> 24),
        (uint8_t)(stream >> 16),
        (uint8_t)(stream >> 8),
        (uint8_t)stream,
    };
    if (wire.len + H2_FRAME_HEADER + len > sizeof(wire.at)) {
        server.is_dead = !h2_receive(&server.h2, wire.at, wire.len) || server.is_dead;
        wire.len = 0;
    }
    if (len > 0 && H2_FRAME_HEADER + len > sizeof(wire.at)) {
        server.is_dead = !h2_receive(&server.h2, header, sizeof(header)) || server.is_dead;
        server.is_dead = !h2_receive(&server.h2, payload, len) || server.is_dead;
        return;
    }
    put_raw(&wire, header, sizeof(header));
    put_raw(&wire, payload, len);
}

static inline void write_code(uint8_t type, int32_t stream, uint32_t code) {
    const uint8_t payload[4] = {(uint8_t)(code >> 24), (uint8_t)(code >> 16), (uint8_t)(code >> 8),
                                (uint8_t)code};
    write_frame(type, 0, stream, payload, sizeof(payload));
}

/* A CONNECT, its headers not indexed. */
static inline void write_headers(int32_t stream, uint8_t flags) {
    static const char BLOCK[] =
        "\0\7:method\7CONNECT\0\12:authority\15"
        "10.1.1.5:8080";
    write_frame(NGHTTP2_HEADERS, flags, stream, BLOCK, sizeof(BLOCK) - 1);
}

/* The server reads what was written, and says what it has to. */
static inline void feed_server(void) {
    if (!server.is_dead) {
        server.is_dead = !h2_receive(&server.h2, wire.at, wire.len);
    }
    wire.len = 0;
    server.is_dead = !h2_flush(&server.h2) || server.is_dead;
    log_frames(&server);
    server.out.len = 0;
    loop_turn(&loop, 0);
}

/* The preface and SETTINGS of a client. */
static inline void greet(void) {
    put_raw(&wire, NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN);
    write_frame(NGHTTP2_SETTINGS, 0, 0, NULL, 0);
    feed_server();
}

/* --- the log --- */

static inline const uint8_t *next_frame(const struct frame_log *log, size_t *at) {
    if (*at >= log->len) {
        return NULL;
    }
    const uint8_t *const frame = log->at + *at;
    *at += H2_FRAME_HEADER + (frame[3] == NGHTTP2_DATA ? 0 : frame_len(frame));
    return frame;
}

static inline uint32_t number_at(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* The first frame of a type and stream, NULL if there is none. */
static inline const uint8_t *find_frame(const struct frame_log *log, uint8_t type, int32_t stream) {
    const uint8_t *frame;
    for (size_t at = 0; (frame = next_frame(log, &at)) != NULL;) {
        if (frame[3] == type && number_at(frame + 5) == (uint32_t)stream) {
            return frame;
        }
    }
    return NULL;
}

static inline unsigned count_frames(const struct frame_log *log, uint8_t type) {
    unsigned n = 0;
    const uint8_t *frame;
    for (size_t at = 0; (frame = next_frame(log, &at)) != NULL;) {
        n += frame[3] == type;
    }
    return n;
}

/* What a RST_STREAM says; UINT32_MAX if there is none. */
static inline uint32_t error_code(const uint8_t *frame) {
    return frame == NULL ? UINT32_MAX : number_at(frame + H2_FRAME_HEADER);
}

/* The last GOAWAY, NULL if there is none. */
static inline const uint8_t *last_goaway(const struct frame_log *log) {
    const uint8_t *found = NULL;
    const uint8_t *frame;
    for (size_t at = 0; (frame = next_frame(log, &at)) != NULL;) {
        found = frame[3] == NGHTTP2_GOAWAY ? frame : found;
    }
    return found;
}

static inline uint32_t goaway_code(const struct frame_log *log) {
    const uint8_t *const frame = last_goaway(log);
    return frame == NULL ? UINT32_MAX : number_at(frame + H2_FRAME_HEADER + 4);
}

static inline int64_t last_stream(const struct frame_log *log) {
    const uint8_t *const frame = last_goaway(log);
    return frame == NULL ? -1 : (int64_t)number_at(frame + H2_FRAME_HEADER);
}

#endif
