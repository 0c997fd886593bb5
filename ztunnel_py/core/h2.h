/* SPDX-License-Identifier: Apache-2.0 */
/* HBONE on HTTP/2 (nghttp2), without I/O: plain bytes in, events out; commands in, plain bytes out.
 *
 * One HTTP/2 connection that carries only CONNECT streams. Settings and windows are ztunnel's,
 * exactly (spec dataplane, section 4.1). Connection credit returns when bytes arrive, stream credit
 * when they are consumed, so a stalled reader stops its own stream only. A malformed request costs
 * its stream; what breaks the protocol costs the connection. GOAWAY of a drain is written here and
 * not by the library, which would ignore later streams instead of refusing them.
 *
 * nghttp2 must not be told to send from inside its own callbacks: while `h2_receive` runs, nothing
 * is sent, and streams that become writable are told afterwards.
 */
#ifndef ZT_H2_H
#define ZT_H2_H

#include <nghttp2/nghttp2.h>

#include "core.h"
#include "h2_request.h"
#include "loop.h"
#include "stream.h"
#include "verdict.h"

#define H2_FRAME_HEADER 9
#define H2_LAST_STREAM INT32_MAX

struct h2_ops {
    /* Plain bytes to be sent. */
    void (*emit)(struct h2 *h2, const uint8_t *bytes, size_t len);
    /* The same with H2_FRAME_HEADER writable bytes in front, to be filled with `header`. */
    void (*emit_data)(struct h2 *h2, const uint8_t *header, uint8_t *payload, size_t len);
    /* A complete request (server); the stream's owner may be set, and its sink. */
    void (*requested)(struct h2 *h2, struct stream *stream, const struct h2_request *request);
    /* Bytes of a stream, within the buffer given to `h2_receive`. */
    void (*data)(struct h2 *h2, struct stream *stream, const uint8_t *bytes, size_t len);
    /* What was handed over as `data` must be pushed on before something else about the stream. */
    void (*settle)(struct h2 *h2, struct stream *stream);
    void (*closed)(struct h2 *h2); /* a stream is over */
    void (*ping_acked)(struct h2 *h2, bool is_drain);
    void (*went_away)(struct h2 *h2); /* GOAWAY; streams above its limit break by themselves */
    void (*windows_opened)(struct h2 *h2);
    void (*wake)(struct h2 *h2); /* something was queued: `h2_flush` is due */
};

struct h2 {
    const struct h2_ops *ops;
    nghttp2_session *session;
    struct loop *loop;
    struct list streams; /* of struct stream, `link` */
    struct list blocked; /* of struct stream, `blocked` */
    uint32_t n_streams;
    uint32_t max_served;
    uint32_t header_list;    /* our SETTINGS_MAX_HEADER_LIST_SIZE */
    uint64_t received, sent; /* bytes of DATA */
    size_t block_len;        /* of the header block being received */
    int32_t last_served;     /* highest stream that was served */
    int resets;              /* streams broken beyond those that finished, since our last PING */
    int empty_frames;        /* since our last PING */
    bool is_client;
    bool is_refusing;     /* new streams are refused */
    bool must_refuse;     /* the second GOAWAY of a drain is due */
    bool is_receiving;    /* inside `h2_receive` */
    bool is_congested;    /* the owner's way out is full: nothing may be offered */
    bool has_settings;    /* the other side's are known */
    bool is_flooded;      /* because it overdid something */
    bool is_over;         /* the library said GOAWAY: nothing more is to be expected */
    bool is_first_flight; /* our SETTINGS have not been sent */
};

/* Prepares a session and queues its first flight. False without memory. */
bool h2_open(struct h2 *h2, const struct h2_ops *ops, struct loop *loop,
             const struct core_config *config, bool is_client);

/* Frees it, reporting nothing. Its streams must have been broken; those whose owner still holds on
 * to them live until `h2_release`. */
void h2_close(struct h2 *h2);

/* Takes plain bytes. False if the connection is over: send what is queued and close. */
bool h2_receive(struct h2 *h2, const uint8_t *bytes, size_t len);

/* Emits what is queued. False if the connection is over. */
bool h2_flush(struct h2 *h2);

/* Client: sends a CONNECT and returns its stream, NULL if no more can be opened. `fields` are the
 * headers behind :authority; those marked are different each time and not worth a table entry. */
struct h2_field {
    struct text name, value;
    bool is_unique;
};
struct stream *h2_connect(struct h2 *h2, struct text authority, const struct h2_field *fields,
                          size_t n_fields);

/* Server: answers. 200 keeps the stream open, any other status ends it both ways. */
void h2_respond(struct stream *stream, unsigned status, const struct header *headers,
                size_t n_headers);

/* Breaks a stream; nothing if it is over. */
void h2_reset(struct stream *stream, uint32_t code);

/* The owner lets go: resets the stream with CANCEL if it is not over. The owner must not touch it
 * afterwards. */
void h2_release(struct stream *stream);

/* Asks for a sign of life. */
void h2_ping(struct h2 *h2, bool is_drain);

/* GOAWAY: to announce (H2_LAST_STREAM), or final. */
void h2_goaway(struct h2 *h2, int32_t last_stream);

/* Server: later streams are refused, and the other side is told which was the last. */
void h2_refuse(struct h2 *h2);

/* How many streams the other side lets us have open. */
uint32_t h2_max_streams(const struct h2 *h2);

/* Whether new streams can be opened (client). */
bool h2_can_open(const struct h2 *h2);

/* Bytes that a stream may send now. */
size_t h2_window(const struct stream *stream);

/* Hands `stream->out` to the session, at once. */
void h2_send(struct stream *stream);

/* Queues END_STREAM. */
void h2_end(struct stream *stream);

/* Returns stream credit. */
void h2_consumed(struct stream *stream, size_t n);

#endif
