/* SPDX-License-Identifier: Apache-2.0 */
/* See io_fd.h. */
#include "io_fd.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "worker.h"

static struct io_fd *of(struct io *io) {
    return CONTAINER_OF(io, struct io_fd, io);
}

static void break_later(struct io_fd *io, int error) {
    io->io.is_broken = true;
    io->error = error;
    io->must_fail = true;
    loop_defer(&io->worker->loop, &io->again);
}

static void report_failure(struct io_fd *io) {
    io->must_fail = false;
    io->io.is_broken = true;
    struct sink *const sink = io->io.sink;
    io->io.sink = NULL;
    if (sink != NULL) {
        sink->ops->failed(sink, (struct io_error){.number = io->error});
    }
}

/* Whether the end is all that is left to be read. An error that is met instead, or was met by a
 * writer, is reported. */
static bool is_at_end(struct io_fd *io) {
    char byte;
    if (!io->saw_hup) {
        return false;
    }
    const ssize_t n = recv(io->watch.fd, &byte, 1, MSG_PEEK);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        break_later(io, errno); /* the kernel says it only once */
    } else if (n == 0 && io->io.is_broken) {
        break_later(io, io->error);
    }
    return n == 0 && !io->io.is_broken;
}

/* Reads once and pushes; true if there may be more and the sink is still there. */
static bool read_once(struct io_fd *io) {
    struct sink *const sink = io->io.sink;
    size_t size = sink->ops->room(sink);
    if (size == 0) {
        io->is_paused = true; /* the sink resumes us */
        if (is_at_end(io)) {
            io->has_ended = true;
            sink->ops->ended(sink);
        }
        return false;
    }
    size = size < IO_READ_MAX ? size : IO_READ_MAX;
    uint8_t *const to = io->worker->scratch + IO_HEADROOM;
    const ssize_t n = recv(io->watch.fd, to, size, 0);
    if (n > 0) {
        /* A short read has emptied the socket, unless an end is behind it. */
        io->can_read = (size_t)n == size || io->saw_hup;
        const struct iovec iov = {.iov_base = to, .iov_len = (size_t)n};
        io->io.is_at_end = is_at_end(io);
        sink->ops->received(sink, &iov, 1, (size_t)n);
        if (io->io.is_at_end && io->io.sink == sink) {
            io->has_ended = true;
            sink->ops->ended(sink);
        }
        return io->can_read;
    }
    if (n == 0) {
        io->can_read = false;
        if (io->io.is_broken) { /* the kernel has said already, to a writer, what the end was */
            report_failure(io);
        } else {
            io->has_ended = true;
            sink->ops->ended(sink);
        }
        return false;
    }
    if (errno == EINTR) {
        return true;
    }
    io->can_read = false;
    if (errno != EAGAIN) {
        io->error = errno;
        report_failure(io);
    }
    return false;
}

static bool is_reading(const struct io_fd *io) {
    return io->io.sink != NULL && io->can_read && !io->is_paused && !io->has_ended &&
           !io->must_fail;
}

/* One chunk a turn, so that everybody gets a turn. */
static void pump(struct io_fd *io) {
    if (is_reading(io) && read_once(io) && is_reading(io)) {
        loop_defer(&io->worker->loop, &io->again);
    }
}

static void again(struct deferred *deferred) {
    struct io_fd *const io = CONTAINER_OF(deferred, struct io_fd, again);
    if (io->must_fail) {
        report_failure(io);
    } else {
        pump(io);
    }
}

static void ready(struct watch *watch, uint32_t events) {
    struct io_fd *const io = CONTAINER_OF(watch, struct io_fd, watch);
    if (io->connected != NULL) {
        if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
            void (*const connected)(struct io_fd *) = io->connected;
            io->connected = NULL;
            io->can_read = (events & (EPOLLIN | EPOLLRDHUP)) != 0;
            io->saw_hup = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
            connected(io);
        }
        return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        io->saw_hup = true;
    }
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        io->can_read = true;
    }
    if (io->is_paused && !io->has_ended && io->io.sink != NULL && is_at_end(io)) {
        io->has_ended = true; /* an end needs no room */
        io->io.sink->ops->ended(io->io.sink);
    }
    if (io->is_blocked && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && io->io.sink != NULL) {
        io->is_blocked = false;
        io->io.sink->ops->writable(io->io.sink);
    }
    pump(io);
}

/* Nothing more can be written, but what has come can be read: the sink gets that first. */
static void write_failed(struct io_fd *io, int error) {
    io->io.is_broken = true;
    io->error = error;
    if (io->has_ended) {
        break_later(io, error);
    } else {
        io->saw_hup = true;
        io->can_read = true;
        loop_defer(&io->worker->loop, &io->again);
    }
}

static size_t offer(struct io *base, const struct iovec *iov, int n, size_t total) {
    struct io_fd *const io = of(base);
    if (base->is_broken || io->is_blocked) {
        return 0;
    }
    const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov,
                                   .msg_iovlen = (size_t)n};
    ssize_t sent;
    do {
        sent = sendmsg(io->watch.fd, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno != EAGAIN) {
        write_failed(io, errno);
        return 0;
    }
    const size_t taken = sent < 0 ? 0 : (size_t)sent;
    io->is_blocked = taken < total;
    return taken;
}

static size_t room(struct io *base) {
    return of(base)->is_blocked ? 0 : SIZE_MAX;
}

static void consumed(struct io *base, size_t n) {
    (void)base; /* the kernel's window needs no word from us */
    (void)n;
}

static void end(struct io *base, bool is_closing) {
    if (!base->is_broken && !is_closing) {
        (void)shutdown(of(base)->watch.fd,
                       SHUT_WR); /* one that is gone is reported by its reader */
    }
}

static void pause_reading(struct io *base) {
    of(base)->is_paused = true;
}

static void resume(struct io *base) {
    struct io_fd *const io = of(base);
    io->is_paused = false;
    if (is_reading(io)) {
        loop_defer(&io->worker->loop, &io->again);
    }
}

static void close_socket(struct io *base) {
    struct io_fd *const io = of(base);
    base->sink = NULL;
    base->is_broken = true;
    io->must_fail = false;
    list_remove(&io->again.link);
    loop_close_fd(&io->worker->loop, &io->watch);
}

static const struct io_ops OPS = {
    .offer = offer,
    .room = room,
    .consumed = consumed,
    .end = end,
    .pause = pause_reading,
    .resume = resume,
    .close = close_socket,
};

bool io_fd_open(struct io_fd *io, struct worker *worker, int fd) {
    memset(io, 0, sizeof(*io));
    io->io.ops = &OPS;
    io->worker = worker;
    io->watch.ready = ready;
    io->is_paused = true;
    deferred_init(&io->again, again);
    return loop_watch(&worker->loop, &io->watch, fd);
}

bool io_fd_is_open(const struct io_fd *io) {
    return io->io.ops != NULL && io->watch.fd >= 0;
}
