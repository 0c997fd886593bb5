/* SPDX-License-Identifier: Apache-2.0 */
/* See relay.h. */
#include "relay.h"

#include <errno.h>

#include "worker.h"

#define PIECES 64 /* chunks offered at once */

static struct pipe *of(struct sink *sink) {
    return CONTAINER_OF(sink, struct pipe, sink);
}

static struct pipe *twin(struct pipe *pipe) {
    return pipe == &pipe->relay->up ? &pipe->relay->down : &pipe->relay->up;
}

static bool is_quiet(struct io_error error) {
    return !error.is_reset && (error.number == ENOTCONN || error.number == ECONNRESET ||
                               error.number == EPIPE || error.number == ESHUTDOWN);
}

static void finish(struct pipe *pipe) {
    struct relay *const relay = pipe->relay;
    pipe->is_over = true;
    if (relay->up.is_over && relay->down.is_over && !relay->is_over) {
        relay->is_over = true;
        relay->ops->over(relay);
    }
}

/* Drops what waits; used when it can never leave. */
static void drop_held(struct pipe *pipe) {
    if (pipe->held.len > 0) {
        const int64_t len = (int64_t)pipe->held.len;
        queue_clear(pipe->relay->worker->mem, &pipe->held);
        pipe->relay->ops->held(pipe->relay, pipe, -len);
    }
    pipe->stalled_since = 0;
}

/* Takes no more from the source. What waits still leaves, then the target is half-closed. */
static void stop(struct pipe *pipe) {
    if (pipe->has_ended) {
        return;
    }
    pipe->has_ended = true;
    if (pipe->source != NULL) {
        pipe->source->ops->pause(
            pipe->source); /* else whoever writes on would be read for nothing */
    }
    if (pipe->target != NULL && pipe->target->is_broken) {
        drop_held(pipe);
    }
    if (pipe->held.len == 0 && pipe->target != NULL) {
        pipe->target->ops->end(pipe->target, twin(pipe)->is_over);
        finish(pipe);
    }
}

static void note(struct pipe *pipe, struct io_error error) {
    if (!is_quiet(error) && !pipe->has_ended) {
        pipe->error = error;
        pipe->has_error = true;
    }
}

/* Counts what the target took, and lets the source know. */
static void passed_on(struct pipe *pipe, size_t n) {
    if (n > 0) {
        pipe->carried += n;
        pipe->relay->ops->carried(pipe->relay, pipe, n);
        if (pipe->source != NULL) {
            pipe->source->ops->consumed(pipe->source, n);
        }
    }
}

/* Keeps the rest of what was pushed behind its first `skip` bytes. False without memory. */
static bool hold(struct pipe *pipe, const struct iovec *iov, int n, size_t skip) {
    struct worker *const worker = pipe->relay->worker;
    size_t added = 0;
    bool is_kept = true;
    for (int i = 0; i < n && is_kept; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        const size_t len = iov[i].iov_len - skip;
        is_kept = queue_add(worker->mem, &pipe->held, (char *)iov[i].iov_base + skip, len);
        added += is_kept ? len : 0;
        skip = 0;
    }
    if (pipe->stalled_since == 0) {
        pipe->stalled_since = worker->loop.now_ns;
        stats_count(&worker->stats, EVENT_relay_paused);
    }
    pipe->relay->ops->held(pipe->relay, pipe, (int64_t)added);
    return is_kept;
}

static size_t pipe_room(struct sink *sink) {
    struct pipe *const pipe = of(sink);
    if (pipe->held.len > 0 || pipe->target == NULL) {
        return 0;
    }
    return pipe->target->ops->room(pipe->target);
}

static void pipe_received(struct sink *sink, const struct iovec *iov, int n, size_t total) {
    struct pipe *const pipe = of(sink);
    if (pipe->has_ended) {
        return;
    }
    size_t taken = 0;
    if (pipe->target != NULL && pipe->held.len == 0) {
        if (!pipe->target->is_broken) {
            pipe->target->end_follows = pipe->source->is_at_end;
            taken = pipe->target->ops->offer(pipe->target, iov, n, total);
            pipe->target->end_follows = false;
            passed_on(pipe, taken);
        }
        if (pipe->target->is_broken) {
            stop(pipe);
            return;
        }
    }
    if (taken < total) {
        if (pipe->source != NULL) {
            pipe->source->ops->pause(pipe->source);
        }
        if (!hold(pipe, iov, n, taken)) {
            /* Bytes were lost: the only honest end is a broken one, both ways. */
            drop_held(pipe);
            note(pipe, (struct io_error){.number = ENOMEM});
            stop(pipe);
            stop(twin(pipe));
        }
    }
}

static void pipe_ended(struct sink *sink) {
    stop(of(sink));
}

static void pipe_failed(struct sink *sink, struct io_error error) {
    struct pipe *const pipe = of(sink);
    struct pipe *const other = twin(pipe);
    const bool twin_waits = other->stalled_since != 0 || other->has_ended;
    note(pipe, error);
    if (twin_waits && !other->is_over) {
        /* It writes to what just broke. */
        note(other, error);
        drop_held(other);
        other->has_ended = true;
        stop(pipe);
        if (!other->is_over) {
            finish(other);
        }
        return;
    }
    stop(pipe);
    if (!pipe->relay->is_over && !other->has_ended && other->source != NULL) {
        other->source->ops->resume(other->source); /* if it waits for room, there will be none */
    }
}

/* The io that is our twin's target, and our own source, takes more. */
static void pipe_writable(struct sink *sink) {
    struct pipe *const pipe = twin(of(sink));
    struct iovec iov[PIECES];
    while (pipe->held.len > 0) {
        if (pipe->target->is_broken) {
            drop_held(pipe);
            stop(pipe); /* its credit is gone with it, so more may never come to be refused */
            break;
        }
        const int n = queue_peek(&pipe->held, iov, PIECES);
        size_t total = 0;
        for (int i = 0; i < n; i++) {
            total += iov[i].iov_len;
        }
        pipe->target->end_follows = pipe->has_ended && total == pipe->held.len;
        const size_t taken = pipe->target->ops->offer(pipe->target, iov, n, total);
        pipe->target->end_follows = false;
        if (taken > 0) {
            queue_drop(pipe->relay->worker->mem, &pipe->held, taken);
            pipe->relay->ops->held(pipe->relay, pipe, -(int64_t)taken);
            passed_on(pipe, taken);
        }
        if (taken < total && !pipe->target->is_broken) {
            return;
        }
    }
    pipe->stalled_since = 0;
    if (pipe->has_ended) {
        if (!pipe->is_over) {
            pipe->target->ops->end(pipe->target, twin(pipe)->is_over);
            finish(pipe);
        }
    } else if (pipe->source != NULL) {
        pipe->source->ops->resume(pipe->source);
    }
}

static const struct sink_ops PIPE_OPS = {
    .room = pipe_room,
    .received = pipe_received,
    .ended = pipe_ended,
    .failed = pipe_failed,
    .writable = pipe_writable,
};

static void pipe_init(struct pipe *pipe, struct relay *relay) {
    memset(pipe, 0, sizeof(*pipe));
    pipe->sink.ops = &PIPE_OPS;
    pipe->relay = relay;
}

void relay_init(struct relay *relay, const struct relay_ops *ops, struct worker *worker) {
    relay->ops = ops;
    relay->worker = worker;
    relay->is_over = false;
    pipe_init(&relay->up, relay);
    pipe_init(&relay->down, relay);
}

void relay_set_client(struct relay *relay, struct io *client) {
    relay->up.source = client;
    relay->down.target = client;
    client->sink = &relay->up.sink;
}

void relay_set_upstream(struct relay *relay, struct io *upstream) {
    relay->down.source = upstream;
    relay->up.target = upstream;
    upstream->sink = &relay->down.sink;
}

/* Moves what came early, ends what ended early, and lets the source push. */
static void pipe_start(struct pipe *pipe) {
    if (pipe->held.len > 0 || pipe->has_ended) {
        pipe_writable(&twin(pipe)->sink);
    } else {
        pipe->source->ops->resume(pipe->source);
    }
}

void relay_start(struct relay *relay) {
    if (relay->up.target->is_broken && !relay->up.has_ended) {
        stop(&relay->up);
    }
    pipe_start(&relay->down);
    if (!relay->is_over) {
        pipe_start(&relay->up);
    }
}

void relay_close(struct relay *relay) {
    relay->is_over = true;
    if (relay->up.source != NULL) {
        relay->up.source->ops->close(relay->up.source);
    }
    if (relay->down.source != NULL) {
        relay->down.source->ops->close(relay->down.source);
    }
    drop_held(&relay->up);
    drop_held(&relay->down);
}
