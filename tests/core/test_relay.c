/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of relay.c: both directions, half-close, back-pressure, breaks. */
#include "relay.h"

#include "check.h"
#include "fake_io.h"
#include "worker.h"

/* How a side ends what it sends. */
enum ending { FIN, RST };

static struct mem mem;
static struct worker worker;
static struct relay relay;
static struct fake_io client, upstream;
static uint64_t n_up, n_down;      /* bytes that left */
static int64_t held_up, held_down; /* bytes that wait, as the budget knows it */
static unsigned n_over;

static void carried(struct relay *of, struct pipe *pipe, size_t n) {
    *(pipe == &of->up ? &n_up : &n_down) += n;
}

static void held(struct relay *of, struct pipe *pipe, int64_t change) {
    int64_t *const sum = pipe == &of->up ? &held_up : &held_down;
    *sum += change;
    CHECK(*sum >= 0);
    CHECK_INT_EQ(*sum, pipe->held.len);
}

static void over(struct relay *of) {
    n_over++;
    relay_close(of); /* as a connection does */
}

static const struct relay_ops OPS = {.carried = carried, .held = held, .over = over};

static void prepare(void) {
    worker.mem = &mem;
    worker.loop.now_ns = 5 * NS_PER_S;
    stats_init(&worker.stats, &mem);
    fake_io_init(&client);
    fake_io_init(&upstream);
    relay_init(&relay, &OPS, &worker);
}

static void join(void) {
    prepare();
    relay_set_client(&relay, &client.io);
    relay_set_upstream(&relay, &upstream.io);
    relay_start(&relay);
    CHECK(!client.is_paused && !upstream.is_paused);
}

static void nothing_is_held(void) {
    CHECK_INT_EQ(held_up, 0);
    CHECK_INT_EQ(held_down, 0);
    CHECK_INT_EQ(mem.live[MEM_BUFFER], 0);
}

static void is_over(void) {
    CHECK_INT_EQ(n_over, 1);
    CHECK_INT_EQ(client.n_closes, 1);
    CHECK_INT_EQ(upstream.n_closes, 1);
    nothing_is_held();
}

static void got(const struct fake_io *fake, const char *expected) {
    CHECK_MEM_EQ(fake->taken.at, fake->taken.len, expected, strlen(expected));
}

static void end_side(struct fake_io *fake, enum ending how) {
    if (how == FIN) {
        fake_io_finish(fake);
    } else {
        fake_io_break(fake, ECONNRESET);
    }
}

/* --- bytes --- */

TEST(bytes_pass_both_ways_without_being_kept) {
    join();

    fake_io_push(&client, "question", 8, 3);
    fake_io_push(&upstream, "answer", 6, 0);

    got(&upstream, "question");
    got(&client, "answer");
    CHECK_INT_EQ(client.consumed, 8);
    CHECK_INT_EQ(upstream.consumed, 6);
    CHECK_INT_EQ(n_up, 8);
    CHECK_INT_EQ(n_down, 6);
    CHECK_INT_EQ(client.n_pauses, 0);
    nothing_is_held();
}

TEST(what_is_not_taken_waits_and_its_source_is_paused) {
    join();
    upstream.room = 3;

    fake_io_push(&client, "question", 8, 2);

    got(&upstream, "que");
    CHECK(client.is_paused);
    CHECK_INT_EQ(client.consumed, 3);
    CHECK_INT_EQ(held_up, 5);
    CHECK_INT_EQ(relay.up.stalled_since, worker.loop.now_ns);
    CHECK_INT_EQ(client.io.sink->ops->room(client.io.sink), 0);
    CHECK_INT_EQ(worker.stats.events[EVENT_relay_paused], 1);

    fake_io_open(&upstream, 4);
    got(&upstream, "questio");
    CHECK(client.is_paused);
    CHECK_INT_EQ(client.consumed, 7);
    CHECK_INT_EQ(held_up, 1);

    fake_io_open(&upstream, FAKE_IO_ANY);
    got(&upstream, "question");
    CHECK(!client.is_paused);
    CHECK_INT_EQ(client.consumed, 8);
    CHECK_INT_EQ(relay.up.stalled_since, 0);
    nothing_is_held();
}

TEST(what_comes_meanwhile_waits_behind_it) {
    join();
    upstream.room = 1;
    fake_io_push(&client, "one ", 4, 0);
    upstream.room = FAKE_IO_ANY; /* not said yet */

    fake_io_push(&client, "two", 3, 0);
    got(&upstream, "o");

    fake_io_open(&upstream, FAKE_IO_ANY);
    got(&upstream, "one two");
    nothing_is_held();
}

TEST(a_stall_of_one_direction_does_not_stop_the_other) {
    join();
    upstream.room = 0;
    fake_io_push(&client, "question", 8, 0);

    fake_io_push(&upstream, "answer", 6, 0);

    got(&client, "answer");
    CHECK(!upstream.is_paused);
}

TEST(the_source_knows_how_much_the_target_would_take) {
    join();

    upstream.room = 1234;

    CHECK_INT_EQ(client.io.sink->ops->room(client.io.sink), 1234);
}

/* --- before it is started --- */

TEST(what_comes_before_the_upstream_is_held_for_it) {
    prepare();
    relay_set_client(&relay, &client.io);
    CHECK_INT_EQ(client.io.sink->ops->room(client.io.sink), 0);
    fake_io_push(&client, "early", 5, 0);
    CHECK_INT_EQ(held_up, 5);

    relay_set_upstream(&relay, &upstream.io);
    relay_start(&relay);

    got(&upstream, "early");
    CHECK_INT_EQ(client.consumed, 5);
    CHECK(!client.is_paused);
    nothing_is_held();
}

TEST(an_end_that_comes_before_the_upstream_reaches_it) {
    prepare();
    relay_set_client(&relay, &client.io);
    fake_io_push(&client, "early", 5, 0);
    fake_io_finish(&client);
    CHECK_INT_EQ(n_over, 0);

    relay_set_upstream(&relay, &upstream.io);
    relay_start(&relay);

    got(&upstream, "early");
    CHECK(upstream.was_end_hinted);
    CHECK_INT_EQ(upstream.n_ends, 1);
    CHECK_INT_EQ(n_over, 0);
}

TEST(a_client_that_broke_before_the_upstream_was_there_ends_both_directions_in_the_end) {
    prepare();
    relay_set_client(&relay, &client.io);
    fake_io_break(&client, ECONNRESET);

    relay_set_upstream(&relay, &upstream.io);
    relay_start(&relay);
    CHECK_INT_EQ(upstream.n_ends, 1);
    fake_io_push(&upstream, "into the void", 13, 0);

    CHECK_INT_EQ(n_down, 0);
    is_over();
}

TEST(what_came_early_is_dropped_if_it_is_never_started) {
    prepare();
    relay_set_client(&relay, &client.io);
    fake_io_push(&client, "early", 5, 0);

    relay_close(&relay);

    CHECK_INT_EQ(n_over, 0);
    CHECK_INT_EQ(client.n_closes, 1);
    nothing_is_held();
}

/* --- ends --- */

TEST(one_direction_ends_and_the_other_goes_on) {
    join();

    fake_io_finish(&client);
    CHECK_INT_EQ(upstream.n_ends, 1);
    fake_io_push(&upstream, "more", 4, 0);
    CHECK_INT_EQ(n_over, 0);
    fake_io_finish(&upstream);

    got(&client, "more");
    CHECK_INT_EQ(client.n_ends, 1);
    is_over();
}

/* All combinations, the client first and the application first. Resets are how many say goodbye. */
static void ends_in_order(struct fake_io *first, struct fake_io *second, enum ending how_first,
                          enum ending how_second) {
    fake_io_push(first, "last", 4, 0);
    end_side(first, how_first);
    CHECK_INT_EQ(second->n_ends, 1);
    CHECK_INT_EQ(n_over, 0);
    end_side(second, how_second);

    got(second, "last");
    CHECK(!relay.up.has_error && !relay.down.has_error);
    is_over();
}

TEST(fin_then_fin) {
    join();
    ends_in_order(&client, &upstream, FIN, FIN);
}

TEST(fin_then_reset) {
    join();
    ends_in_order(&client, &upstream, FIN, RST);
}

TEST(reset_then_fin) {
    join();
    ends_in_order(&client, &upstream, RST, FIN);
}

TEST(reset_then_reset) {
    join();
    ends_in_order(&client, &upstream, RST, RST);
}

TEST(fin_then_fin_application_first) {
    join();
    ends_in_order(&upstream, &client, FIN, FIN);
}

TEST(fin_then_reset_application_first) {
    join();
    ends_in_order(&upstream, &client, FIN, RST);
}

TEST(reset_then_fin_application_first) {
    join();
    ends_in_order(&upstream, &client, RST, FIN);
}

TEST(reset_then_reset_application_first) {
    join();
    ends_in_order(&upstream, &client, RST, RST);
}

/* What waits when a side ends is still delivered, and the end comes behind it. */
static void delivers_then_ends(enum ending how) {
    join();
    upstream.room = 2;
    fake_io_push(&client, "last words", 10, 0);

    end_side(&client, how);
    CHECK_INT_EQ(upstream.n_ends, 0);
    fake_io_open(&upstream, 3);
    CHECK_INT_EQ(upstream.n_ends, 0);
    fake_io_open(&upstream, FAKE_IO_ANY);

    got(&upstream, "last words");
    CHECK(upstream.was_end_hinted);
    CHECK_INT_EQ(upstream.n_ends, 1);
    nothing_is_held();
    CHECK_INT_EQ(n_over, 0);
    fake_io_finish(&upstream);
    is_over();
}

TEST(held_bytes_leave_before_a_fin) {
    delivers_then_ends(FIN);
}

TEST(held_bytes_leave_before_the_end_of_a_side_that_was_reset) {
    delivers_then_ends(RST);
}

TEST(an_end_that_comes_with_the_last_bytes_is_hinted) {
    join();
    client.io.is_at_end = true;

    fake_io_push(&client, "bye", 3, 0);
    CHECK(upstream.was_end_hinted && !upstream.io.end_follows);
    fake_io_finish(&client);

    CHECK_INT_EQ(upstream.n_ends, 1);
}

TEST(nothing_is_taken_behind_an_end) {
    join();
    fake_io_finish(&client);

    fake_io_push(&client, "late", 4, 0);
    fake_io_finish(&client);

    got(&upstream, "");
    CHECK_INT_EQ(upstream.n_ends, 1);
}

/* --- breaks --- */

TEST(a_side_that_broke_ends_the_direction_that_writes_to_it) {
    join();
    fake_io_break(&upstream, ECONNRESET);
    CHECK_INT_EQ(client.n_ends, 1);

    fake_io_push(&client, "too late", 8, 0);

    CHECK_INT_EQ(n_up, 0);
    is_over();
}

TEST(a_source_whose_target_broke_is_read_no_more) {
    join();
    client.room = 0;
    fake_io_push(&upstream, "unread", 6, 0);
    fake_io_reset(&upstream, 8);
    CHECK_INT_EQ(n_over, 0); /* the client may still read */

    fake_io_push(&client, "on and on", 9, 0);

    CHECK(client.is_paused);
    fake_io_open(&client, FAKE_IO_ANY);
    got(&client, "unread");
    is_over();
}

TEST(a_write_that_fails_ends_its_direction_only) {
    join();
    upstream.breaks_with = EPIPE;

    fake_io_push(&client, "lost", 4, 0);
    CHECK(relay.up.is_over && !relay.down.is_over);
    fake_io_break(&upstream, EPIPE);

    CHECK_INT_EQ(client.n_ends, 1);
    is_over();
}

/* It paused by itself, so no bytes wait, and it is not told that there is room. */
TEST(a_source_that_waits_for_room_at_a_side_that_breaks_goes_on) {
    join();
    upstream.room = 0;
    CHECK_INT_EQ(client.io.sink->ops->room(client.io.sink), 0);
    client.is_paused = true;

    fake_io_break(&upstream, EPIPE);
    CHECK(!client.is_paused);
    fake_io_push(&client, "too late", 8, 0);

    is_over();
}

/* A reset is met by writing, before it is met by reading. */
TEST(a_side_that_breaks_as_it_is_told_what_waited_is_written_to_no_more) {
    join();
    client.room = 0;
    fake_io_push(&upstream, "unread", 6, 0);
    client.breaks_with = ECONNRESET;

    fake_io_open(&client, FAKE_IO_ANY);
    CHECK(relay.down.is_over && !relay.up.is_over);
    fake_io_break(&client, ECONNRESET);

    CHECK(!relay.up.has_error && !relay.down.has_error);
    is_over();
}

TEST(bytes_that_wait_for_a_side_that_breaks_are_dropped) {
    join();
    upstream.room = 0;
    fake_io_push(&client, "question", 8, 0);

    fake_io_break(&upstream, ECONNRESET);

    is_over();
}

TEST(an_end_that_waits_for_a_side_that_breaks_is_over) {
    join();
    upstream.room = 0;
    fake_io_push(&client, "question", 8, 0);
    fake_io_finish(&client);

    fake_io_break(&upstream, ETIMEDOUT);

    CHECK(relay.down.has_error);
    CHECK_INT_EQ(relay.down.error.number, ETIMEDOUT);
    is_over();
}

TEST(a_reset_of_a_stream_is_an_error_of_its_direction) {
    join();

    fake_io_reset(&client, 2);
    CHECK_INT_EQ(upstream.n_ends, 1);
    fake_io_finish(&upstream);

    CHECK(relay.up.has_error && relay.up.error.is_reset);
    CHECK_INT_EQ(relay.up.error.code, 2);
    CHECK(!relay.down.has_error);
    is_over();
}

TEST(a_break_that_is_no_goodbye_is_an_error_of_its_direction) {
    join();

    fake_io_break(&upstream, ETIMEDOUT);
    fake_io_finish(&client);

    CHECK(relay.down.has_error && !relay.up.has_error);
    CHECK_INT_EQ(relay.down.error.number, ETIMEDOUT);
    is_over();
}

TEST(goodbyes_are_no_errors) {
    static const int QUIET[] = {ECONNRESET, EPIPE, ENOTCONN, ESHUTDOWN};
    for (size_t i = 0; i < ARRAY_LEN(QUIET); i++) {
        n_over = 0;
        join();

        fake_io_break(&client, QUIET[i]);
        fake_io_break(&upstream, QUIET[i]);

        CHECK(!relay.up.has_error && !relay.down.has_error);
        is_over();
    }
}

/* --- memory --- */

TEST(bytes_that_cannot_be_kept_break_both_directions) {
    join();
    upstream.room = 1;
    mem_fail_at(1);

    fake_io_push(&client, "question", 8, 0);

    CHECK(relay.up.has_error);
    CHECK_INT_EQ(relay.up.error.number, ENOMEM);
    is_over();
}

TEST(closing_drops_what_waits_and_does_not_say_that_it_is_over) {
    join();
    upstream.room = 0;
    client.room = 0;
    fake_io_push(&client, "up", 2, 0);
    fake_io_push(&upstream, "down", 4, 0);

    relay_close(&relay);

    CHECK_INT_EQ(n_over, 0);
    CHECK_INT_EQ(client.n_closes, 1);
    CHECK_INT_EQ(upstream.n_closes, 1);
    nothing_is_held();
}
