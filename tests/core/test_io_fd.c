/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of io_fd.c: a socket pushes, takes, pauses, ends and breaks. */
#include "io_fd.h"

#include <errno.h>

#include "check.h"
#include "tcp_pair.h"
#include "worker.h"

/* A sink that remembers, and does something once if it is told to. */
struct ear {
    struct sink sink;
    size_t room;
    char heard[64];
    size_t len; /* of all that came; what fits is in `heard` */
    unsigned n_received, n_ended, n_failed, n_writable;
    int error;
    bool was_at_end; /* the last bytes said that the end is behind them */
    bool closes;     /* closes the io when it hears something */
    bool pauses;
};

static struct mem mem;
static struct worker worker;
static struct io_fd io;
static struct ear ear;
static int far_end; /* the test's side */

static struct ear *of(struct sink *sink) {
    return CONTAINER_OF(sink, struct ear, sink);
}

static size_t room(struct sink *sink) {
    return of(sink)->room;
}

static void received(struct sink *sink, const struct iovec *iov, int n, size_t total) {
    struct ear *const it = of(sink);
    CHECK_INT_EQ(n, 1);
    CHECK_INT_EQ(iov->iov_len, total);
    CHECK(it->n_ended == 0 && it->n_failed == 0);
    for (size_t i = 0; i < total && it->len + i < sizeof(it->heard); i++) {
        it->heard[it->len + i] = ((const char *)iov->iov_base)[i];
    }
    memset((char *)iov->iov_base - IO_HEADROOM, 0,
           IO_HEADROOM); /* whoever takes it may write there */
    it->len += total;
    it->n_received++;
    it->was_at_end = io.io.is_at_end;
    if (it->pauses) {
        io.io.ops->pause(&io.io);
    }
    if (it->closes) {
        io.io.ops->close(&io.io);
    }
}

static void ended(struct sink *sink) {
    of(sink)->n_ended++;
}

static void failed(struct sink *sink, struct io_error error) {
    CHECK(!error.is_reset);
    of(sink)->n_failed++;
    of(sink)->error = error.number;
}

static void writable(struct sink *sink) {
    of(sink)->n_writable++;
    if (of(sink)->closes) {
        io.io.ops->close(&io.io);
    }
}

static const struct sink_ops OPS = {
    .room = room, .received = received, .ended = ended, .failed = failed, .writable = writable};

static void set_up(void) {
    int ends[2];
    tcp_pair(ends);
    worker.mem = &mem;
    worker.scratch = malloc(IO_HEADROOM + IO_READ_MAX);
    CHECK(worker.scratch != NULL && loop_open(&worker.loop, &mem, true));
    CHECK(io_fd_open(&io, &worker, ends[0]));
    CHECK(io_fd_is_open(&io));
    far_end = ends[1];
    ear = (struct ear){.sink.ops = &OPS, .room = SIZE_MAX};
    io.io.sink = &ear.sink;
}

static void tear_down(void) {
    io.io.ops->close(&io.io);
    CHECK(!io_fd_is_open(&io));
    loop_turn(&worker.loop, 0);
    loop_close(&worker.loop);
    free(worker.scratch);
    close(far_end);
}

/* Turns until nothing more happens. */
static void turns(void) {
    for (int i = 0; i < 5; i++) {
        loop_turn(&worker.loop, 1);
    }
}

static void say(const char *words) {
    CHECK_INT_EQ(write(far_end, words, strlen(words)), strlen(words));
}

static void heard(const char *words) {
    CHECK_MEM_EQ(ear.heard, ear.len, words, strlen(words));
}

/* Offers bytes until one is not taken; returns how many were. */
static size_t fill(void) {
    static char bytes[1 << 16];
    const struct iovec iov[2] = {{bytes, 1}, {bytes + 1, sizeof(bytes) - 1}};
    size_t sum = 0;
    for (;;) {
        const size_t taken = io.io.ops->offer(&io.io, iov, 2, sizeof(bytes));
        sum += taken;
        if (taken < sizeof(bytes)) {
            return sum;
        }
    }
}

static void read_far(size_t len) {
    static char bytes[1 << 16];
    while (len > 0) {
        const ssize_t n = read(far_end, bytes, len < sizeof(bytes) ? len : sizeof(bytes));
        CHECK(n > 0);
        len -= (size_t)n;
    }
}

/* --- reading --- */

TEST(nothing_is_pushed_before_it_is_resumed) {
    set_up();
    say("hello");

    turns();
    CHECK_INT_EQ(ear.n_received, 0);
    io.io.ops->resume(&io.io);
    CHECK_INT_EQ(ear.n_received, 0); /* not from inside the call */
    turns();

    heard("hello");
    tear_down();
}

TEST(what_arrives_is_pushed) {
    set_up();
    io.io.ops->resume(&io.io);

    say("one ");
    turns();
    say("two");
    turns();

    heard("one two");
    CHECK_INT_EQ(ear.n_received, 2);
    tear_down();
}

TEST(a_paused_socket_pushes_nothing_and_misses_nothing) {
    set_up();
    ear.pauses = true;
    io.io.ops->resume(&io.io);
    say("one ");
    turns();

    say("two");
    turns();
    heard("one ");
    io.io.ops->resume(&io.io);
    turns();

    heard("one two");
    tear_down();
}

TEST(a_sink_without_room_is_not_pushed_to_and_gets_no_more_than_it_wants) {
    set_up();
    ear.room = 0;
    io.io.ops->resume(&io.io);
    say("abcdef");
    turns();
    CHECK_INT_EQ(ear.n_received, 0);

    ear.room = 4;
    io.io.ops->resume(&io.io);
    turns();

    heard("abcdef");
    CHECK_INT_EQ(ear.n_received, 2);
    tear_down();
}

TEST(a_turn_pushes_a_chunk_or_two_so_that_everybody_gets_one) {
    static char much[2 * IO_READ_MAX];
    set_up();
    const int size = 4 * (int)IO_READ_MAX;
    CHECK(setsockopt(io.watch.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)) == 0);
    tcp_set_nonblocking(far_end);
    const ssize_t written = write(far_end, much, sizeof(much));
    CHECK(written > 0);
    io.io.ops->resume(&io.io);
    ear.room = 1000;

    loop_turn(&worker.loop, 10);

    CHECK(ear.n_received >= 1 && ear.n_received <= 2);
    CHECK_INT_EQ(ear.len, 1000 * ear.n_received);
    tear_down();
}

/* --- ends --- */

TEST(an_end_is_told_once) {
    set_up();
    io.io.ops->resume(&io.io);

    CHECK(shutdown(far_end, SHUT_WR) == 0);
    turns();

    CHECK_INT_EQ(ear.n_ended, 1);
    CHECK_INT_EQ(ear.n_failed, 0);
    tear_down();
}

TEST(an_end_behind_the_last_bytes_is_known_with_them) {
    set_up();
    say("bye");
    CHECK(shutdown(far_end, SHUT_WR) == 0);
    turns(); /* both are there */

    io.io.ops->resume(&io.io);
    turns();

    heard("bye");
    CHECK(ear.was_at_end);
    CHECK_INT_EQ(ear.n_ended, 1);
    tear_down();
}

TEST(writing_goes_on_behind_an_end) {
    set_up();
    io.io.ops->resume(&io.io);
    CHECK(shutdown(far_end, SHUT_WR) == 0);
    turns();

    const struct iovec iov = {(void *)(uintptr_t) "still", 5};
    CHECK_INT_EQ(io.io.ops->offer(&io.io, &iov, 1, 5), 5);

    read_far(5);
    CHECK_INT_EQ(ear.n_failed, 0);
    tear_down();
}

TEST(ending_it_is_a_fin_and_leaves_reading_alone) {
    char byte;
    set_up();
    io.io.ops->resume(&io.io);

    io.io.ops->end(&io.io, false);
    CHECK_INT_EQ(read(far_end, &byte, 1), 0);
    say("on and on");
    turns();

    heard("on and on");
    tear_down();
}

TEST(an_end_that_is_closed_right_after_is_a_fin) {
    char byte;
    set_up();
    io.io.ops->resume(&io.io);
    const struct iovec iov = {(void *)(uintptr_t) "bye", 3};
    CHECK_INT_EQ(io.io.ops->offer(&io.io, &iov, 1, 3), 3);

    io.io.ops->end(&io.io, true);
    io.io.ops->close(&io.io);

    read_far(3);
    CHECK_INT_EQ(read(far_end, &byte, 1), 0);
    tear_down();
}

TEST(a_reset_fails_it_once) {
    set_up();
    io.io.ops->resume(&io.io);

    tcp_reset(far_end);
    far_end = -1;
    turns();

    CHECK_INT_EQ(ear.n_failed, 1);
    CHECK_INT_EQ(ear.error, ECONNRESET);
    CHECK_INT_EQ(ear.n_ended, 0);
    CHECK(io.io.is_broken && io.io.sink == NULL);
    tear_down();
}

TEST(a_reset_of_a_paused_socket_is_told_at_once) {
    set_up();

    tcp_reset(far_end);
    far_end = -1;
    turns();

    CHECK_INT_EQ(ear.n_failed, 1);
    CHECK_INT_EQ(ear.error, ECONNRESET);
    tear_down();
}

TEST(bytes_in_front_of_a_reset_are_heard) {
    set_up();
    say("last");
    tcp_reset(far_end);
    far_end = -1;
    io.io.ops->resume(&io.io);
    turns();

    heard("last");
    CHECK_INT_EQ(ear.n_failed, 1);
    CHECK_INT_EQ(ear.error, ECONNRESET);
    CHECK_INT_EQ(ear.n_ended, 0);
    tear_down();
}

TEST(an_end_of_a_paused_socket_is_told_at_once_if_nothing_is_in_front_of_it) {
    set_up();
    CHECK(shutdown(far_end, SHUT_WR) == 0);
    turns();

    CHECK_INT_EQ(ear.n_ended, 1);
    tear_down();
}

TEST(an_end_of_a_paused_socket_waits_behind_its_bytes) {
    set_up();
    say("bye");
    CHECK(shutdown(far_end, SHUT_WR) == 0);
    turns();
    CHECK_INT_EQ(ear.n_ended, 0);

    io.io.ops->resume(&io.io);
    turns();

    heard("bye");
    CHECK_INT_EQ(ear.n_ended, 1);
    tear_down();
}

/* --- writing --- */

TEST(a_short_offer_is_followed_by_a_word_when_more_goes) {
    set_up();
    const size_t taken = fill();
    CHECK(taken > 0);
    CHECK_INT_EQ(io.io.ops->room(&io.io), 0);
    turns();
    CHECK_INT_EQ(ear.n_writable, 0);

    read_far(taken);
    turns();

    CHECK_INT_EQ(ear.n_writable, 1);
    CHECK_INT_EQ(io.io.ops->room(&io.io), SIZE_MAX);
    CHECK(fill() > 0);
    tear_down();
}

TEST(a_write_that_fails_is_told_later_and_once) {
    set_up();
    tcp_reset(far_end);
    far_end = -1;
    const struct iovec iov = {(void *)(uintptr_t) "x", 1};
    while (io.io.ops->offer(&io.io, &iov, 1, 1) == 1) {
        usleep(1000);
    }
    CHECK(io.io.is_broken);
    CHECK_INT_EQ(ear.n_failed, 0);

    CHECK_INT_EQ(io.io.ops->offer(&io.io, &iov, 1, 1), 0);
    turns();

    CHECK_INT_EQ(ear.n_failed, 1);
    CHECK(ear.error == ECONNRESET || ear.error == EPIPE);
    tear_down();
}

TEST(a_side_that_breaks_while_it_takes_nothing_is_not_waited_for) {
    set_up();
    io.io.ops->resume(&io.io);
    (void)fill();

    tcp_reset(far_end);
    far_end = -1;
    turns();

    CHECK_INT_EQ(ear.n_failed, 1);
    tear_down();
}

/* --- closing from inside --- */

TEST(it_may_be_closed_while_it_pushes) {
    set_up();
    ear.closes = true;
    io.io.ops->resume(&io.io);

    say("hello");
    CHECK(shutdown(far_end, SHUT_WR) == 0);
    turns();

    CHECK_INT_EQ(ear.n_received, 1);
    CHECK_INT_EQ(ear.n_ended, 0);
    tear_down();
}

TEST(it_may_be_closed_when_it_is_writable) {
    set_up();
    io.io.ops->resume(&io.io);
    const size_t taken = fill();
    ear.closes = true;

    read_far(taken);
    turns();

    CHECK_INT_EQ(ear.n_writable, 1);
    tear_down();
}

TEST(a_closed_one_says_nothing_of_what_was_to_be_told) {
    set_up();
    tcp_reset(far_end);
    far_end = -1;
    const struct iovec iov = {(void *)(uintptr_t) "x", 1};
    while (io.io.ops->offer(&io.io, &iov, 1, 1) == 1) {
        usleep(1000);
    }

    io.io.ops->close(&io.io);
    turns();

    CHECK_INT_EQ(ear.n_failed, 0);
    tear_down();
}
