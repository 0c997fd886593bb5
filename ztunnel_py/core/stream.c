/* SPDX-License-Identifier: Apache-2.0 */
/* See stream.h. */
#include "stream.h"

#include "h2.h"

static struct stream *of(struct io *io) {
    return CONTAINER_OF(io, struct stream, io);
}

static void wait_writable(struct stream *stream) {
    if (list_is_empty(&stream->blocked)) {
        list_push(&stream->h2->blocked, &stream->blocked);
    }
}

static size_t room(struct io *base) {
    struct stream *const stream = of(base);
    const size_t window = base->is_broken ? IO_READ_MAX : h2_window(stream);
    if (window == 0) {
        wait_writable(stream);
    }
    return window;
}

static size_t offer(struct io *base, const struct iovec *iov, int n, size_t total) {
    struct stream *const stream = of(base);
    size_t taken = 0;
    for (int i = 0; i < n && !base->is_broken; i++) {
        size_t len = iov[i].iov_len;
        const size_t window = h2_window(stream);
        len = len < window ? len : window;
        if (len > 0) {
            stream->out = iov[i].iov_base;
            stream->out_len = len;
            stream->is_last = base->end_follows && i == n - 1 && len == iov[i].iov_len;
            h2_send(stream);
            taken += len - stream->out_len;
        }
        if (stream->out_len > 0 || len < iov[i].iov_len) {
            break;
        }
    }
    stream->out = NULL;
    stream->out_len = 0;
    stream->is_last = false;
    if (taken < total && !base->is_broken) {
        wait_writable(stream);
    }
    return taken;
}

static void consumed(struct io *base, size_t n) {
    if (!base->is_broken) {
        h2_consumed(of(base), n);
    }
}

static void end(struct io *base, bool is_closing) {
    (void)is_closing;
    if (!base->is_broken) {
        h2_end(of(base));
    }
}

static void pause_reading(struct io *base) {
    (void)base; /* credit is withheld by not being consumed */
}

static void resume(struct io *base) {
    (void)base; /* what had arrived is held by the sink */
}

static void close_stream(struct io *base) {
    struct stream *const stream = of(base);
    base->sink = NULL;
    list_remove(&stream->blocked);
    h2_release(stream);
}

static const struct io_ops OPS = {
    .offer = offer,
    .room = room,
    .consumed = consumed,
    .end = end,
    .pause = pause_reading,
    .resume = resume,
    .close = close_stream,
};

void stream_init(struct stream *stream, struct h2 *h2) {
    stream->io.ops = &OPS;
    stream->h2 = h2;
    stream->loop = h2->loop;
    list_init(&stream->link);
    list_init(&stream->blocked);
}

void stream_break(struct stream *stream, struct io_error error, bool is_end) {
    if (stream->io.is_broken) {
        return;
    }
    stream->io.is_broken = true;
    list_remove(&stream->blocked);
    struct sink *const sink = stream->io.sink;
    if (!stream->is_started || sink == NULL) {
        if (stream->owner != NULL && !stream->is_started) {
            stream->ops->broke(stream, error);
        }
        return;
    }
    if (!is_end && !stream->remote_ended) {
        stream->io.sink = NULL;
        sink->ops->failed(sink, error);
        return;
    }
    stream->remote_ended = true;
    sink->ops->ended(sink);
    if (stream->io.sink != NULL) {
        sink->ops->writable(sink);
    }
}

void stream_unblock(struct stream *stream) {
    list_remove(&stream->blocked);
    struct sink *const sink = stream->io.sink;
    if (sink != NULL) {
        sink->ops->writable(sink);
    }
}
