/* SPDX-License-Identifier: Apache-2.0 */
/* A scripted io; see fake_io.h. */
#include "fake_io.h"

static struct fake_io *of(struct io *io) {
    return CONTAINER_OF(io, struct fake_io, io);
}

static void take(struct fake_io *fake, const struct iovec *iov, size_t len) {
    put_raw(&fake->taken, iov->iov_base, len);
    if (fake->room != FAKE_IO_ANY) {
        fake->room -= len;
    }
}

static size_t offer(struct io *io, const struct iovec *iov, int n, size_t total) {
    struct fake_io *const fake = of(io);
    size_t taken = 0;
    size_t sum = 0;
    if (fake->n_closes > 0) {
        abort(); /* who closes it does not write to it */
    }
    fake->was_end_hinted = io->end_follows;
    if (fake->breaks_with != 0) {
        io->is_broken = true;
    }
    for (int i = 0; i < n; i++) {
        const size_t len = iov[i].iov_len < fake->room ? iov[i].iov_len : fake->room;
        sum += iov[i].iov_len;
        if (!io->is_broken && (i == 0 || len > 0)) {
            take(fake, &iov[i], len);
            taken += len;
        }
    }
    if (sum != total) {
        abort();
    }
    return taken;
}

static size_t room(struct io *io) {
    return of(io)->room;
}

static void consumed(struct io *io, size_t n) {
    of(io)->consumed += n;
}

static void end(struct io *io, bool is_closing) {
    of(io)->n_ends += !io->is_broken;
    of(io)->was_end_closing = is_closing;
}

static void pause_reading(struct io *io) {
    of(io)->is_paused = true;
    of(io)->n_pauses++;
}

static void resume(struct io *io) {
    of(io)->is_paused = false;
    of(io)->n_resumes++;
}

static void close_io(struct io *io) {
    io->sink = NULL;
    io->is_broken = true;
    of(io)->n_closes++;
}

static const struct io_ops OPS = {
    .offer = offer,
    .room = room,
    .consumed = consumed,
    .end = end,
    .pause = pause_reading,
    .resume = resume,
    .close = close_io,
};

void fake_io_init(struct fake_io *fake) {
    memset(fake, 0, sizeof(*fake));
    fake->io.ops = &OPS;
    fake->room = FAKE_IO_ANY;
    fake->is_paused = true;
}

void fake_io_push(struct fake_io *fake, const void *bytes, size_t len, size_t piece) {
    struct iovec iov[64];
    int n = 0;
    for (size_t at = 0; at < len; n++) {
        if (n == (int)ARRAY_LEN(iov)) {
            abort();
        }
        iov[n].iov_base = (char *)(uintptr_t)bytes + at;
        iov[n].iov_len = piece == 0 || piece > len - at ? len - at : piece;
        at += iov[n].iov_len;
    }
    fake->io.sink->ops->received(fake->io.sink, iov, n, len);
}

void fake_io_finish(struct fake_io *fake) {
    fake->io.sink->ops->ended(fake->io.sink);
}

static void fail(struct fake_io *fake, struct io_error error) {
    struct sink *const sink = fake->io.sink;
    fake->io.is_broken = true;
    fake->io.sink = NULL;
    sink->ops->failed(sink, error);
}

void fake_io_break(struct fake_io *fake, int number) {
    fail(fake, (struct io_error){.number = number});
}

void fake_io_reset(struct fake_io *fake, uint32_t code) {
    fail(fake, (struct io_error){.is_reset = true, .code = code});
}

void fake_io_open(struct fake_io *fake, size_t more) {
    fake->room = more == FAKE_IO_ANY ? FAKE_IO_ANY : fake->room + more;
    fake->io.sink->ops->writable(fake->io.sink);
}
