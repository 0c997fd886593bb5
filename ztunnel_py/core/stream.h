/* SPDX-License-Identifier: Apache-2.0 */
/* One CONNECT stream of a tunnel, as an `io`.
 *
 * Lives until HTTP/2 has forgotten it and the connection that it carries has let go (`h2_release`),
 * in either order. It keeps no bytes: what arrives is pushed at once and credit
 * returns when it was passed on; what is offered leaves at once or is not taken.
 */
#ifndef ZT_STREAM_H
#define ZT_STREAM_H

#include "io.h"
#include "loop.h"

struct h2;
struct stream;
struct h2_request;

/* What a stream reports beside its bytes, which go to its sink. */
struct stream_ops {
    /* Client: the response. */
    void (*responded)(struct stream *stream, unsigned status);
    /* It broke before it was relayed. */
    void (*broke)(struct stream *stream, struct io_error error);
};

struct stream {
    struct io io;
    struct h2 *h2; /* NULL: HTTP/2 has forgotten it */
    struct loop *loop;
    struct grave grave;
    struct list link;    /* among the streams of the tunnel */
    struct list blocked; /* among those that wait to be writable */
    const struct stream_ops *ops;
    void *owner;                /* the connection; NULL: nobody cares any more */
    struct h2_request *request; /* being received; of a response, its baggage */
    const uint8_t *out;         /* offered, being sent */
    size_t out_len;
    int32_t id;
    uint16_t status;    /* of the response (client) */
    bool is_started;    /* it is being relayed: ends and breaks go to the sink */
    bool is_last;       /* END_STREAM comes with what is offered */
    bool end_queued;    /* END_STREAM follows what was sent */
    bool is_deferred;   /* HTTP/2 waits to be told of more */
    bool remote_ends;   /* the frame being read carries END_STREAM */
    bool remote_ended;  /* END_STREAM or a quiet reset was read */
    bool local_ended;   /* END_STREAM was handed to HTTP/2 */
    bool is_responding; /* a response was submitted (server) */
    bool is_refused;    /* final status: RST_STREAM NO_ERROR follows it */
    bool wants_baggage; /* of the response (client) */
    bool is_oversized;  /* its header list is too long */
    bool was_reset;     /* by either side */
    bool is_released;   /* the owner has let go */
};

/* Prepares the io of a new stream. */
void stream_init(struct stream *stream, struct h2 *h2);

/* The stream is gone: an end if `is_end` or if its end was read before, else an error. */
void stream_break(struct stream *stream, struct io_error error, bool is_end);

/* It may be possible to write again. */
void stream_unblock(struct stream *stream);

#endif
