/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of h2.c: a client that costs more than it brings is cut off, and only such a one. */
#include "h2_stage.h"

/* --- resets --- */

TEST(resets_that_follow_each_other_without_end_are_an_attack) {
    set_up();
    greet();

    for (int32_t id = 1; id < 4000 && !server.is_dead; id += 2) {
        write_headers(id, NGHTTP2_FLAG_END_HEADERS);
        write_code(NGHTTP2_RST_STREAM, id, NGHTTP2_CANCEL);
        feed_server();
    }

    CHECK(server.is_dead);
    CHECK(server.n_requests > 900 && server.n_requests < 1100);
    CHECK_INT_EQ(goaway_code(&server.log), NGHTTP2_ENHANCE_YOUR_CALM);
    tear_down();
}

TEST(streams_that_it_has_to_reset_without_end_are_an_attack_too) {
    set_up();
    greet();

    for (int32_t id = 1; id < 4000 && !server.is_dead; id += 2) {
        write_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, "\0\7:method\7CONNECT", 17);
        feed_server();
    }

    CHECK(server.is_dead);
    CHECK_INT_EQ(goaway_code(&server.log), NGHTTP2_ENHANCE_YOUR_CALM);
    tear_down();
}

TEST(a_ping_begins_a_new_count_of_resets) {
    set_up();
    greet();
    for (int32_t id = 1; id < 4000; id += 2) {
        write_headers(id, NGHTTP2_FLAG_END_HEADERS);
        write_code(NGHTTP2_RST_STREAM, id, NGHTTP2_CANCEL);
        feed_server();
        if (id % 801 == 0) {
            h2_ping(&server.h2, false);
        }
    }

    CHECK(!server.is_dead);
    tear_down();
}

/* Also in the eyes of the library, which by itself would end the connection at 33 resets a second.
 */
TEST(streams_that_finish_make_up_for_resets) {
    set_up();
    for (int i = 0; i < 1500; i++) {
        join();
        client.legs[0].stream->io.ops->end(&client.legs[0].stream->io, false);
        server.legs[0].stream->io.ops->end(&server.legs[0].stream->io, false);
        exchange(SIZE_MAX);
        let_go_all();
        (void)open_stream();
        exchange(SIZE_MAX);
        let_go_all();
        exchange(SIZE_MAX);
        forget_legs();
    }

    CHECK(!server.is_dead && !client.is_dead);
    tear_down();
}

/* --- floods --- */

static void flood(void (*write_one)(void), unsigned n) {
    set_up();
    greet();
    write_headers(1, NGHTTP2_FLAG_END_HEADERS);
    feed_server();
    for (unsigned i = 0; i < n && !server.is_dead; i++) {
        write_one();
        if (i % 100 == 0) {
            feed_server();
        }
    }
    feed_server();
}

static void write_empty_data(void) {
    write_frame(NGHTTP2_DATA, 0, 1, NULL, 0);
}

static void write_ping(void) {
    write_frame(NGHTTP2_PING, 0, 0, "12345678", 8);
}

static void write_settings(void) {
    write_frame(NGHTTP2_SETTINGS, 0, 0, NULL, 0);
}

static void write_priority(void) {
    write_frame(NGHTTP2_PRIORITY, 0, 3, "\0\0\0\0\1", 5);
}

TEST(frames_that_carry_nothing_without_end_are_an_attack) {
    void (*const floods[])(void) = {write_empty_data, write_ping, write_settings, write_priority};
    for (size_t i = 0; i < ARRAY_LEN(floods); i++) {
        flood(floods[i], 20000);

        CHECK(server.is_dead);
        CHECK_INT_EQ(goaway_code(&server.log), NGHTTP2_ENHANCE_YOUR_CALM);
        tear_down();
    }
}

TEST(some_frames_that_carry_nothing_are_none) {
    flood(write_empty_data, 5000);
    CHECK(!server.is_dead);

    h2_ping(&server.h2, false); /* a new period begins */
    for (unsigned i = 0; i < 9000; i++) {
        write_empty_data();
    }
    feed_server();

    CHECK(!server.is_dead);
    tear_down();
}

TEST(a_header_block_without_end_is_an_attack) {
    static char nothing[16384];
    set_up();
    greet();
    write_frame(NGHTTP2_HEADERS, 0, 1, nothing, 0);
    for (int i = 0; i < 100 && !server.is_dead; i++) {
        write_frame(NGHTTP2_CONTINUATION, 0, 1, nothing, sizeof(nothing));
        feed_server();
    }

    CHECK(server.is_dead);
    CHECK_INT_EQ(server.n_requests, 0);
    tear_down();
}

TEST(what_is_not_http2_is_refused) {
    set_up();

    put_raw(&wire, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 27);
    feed_server();

    CHECK(server.is_dead);
    CHECK_INT_EQ(goaway_code(&server.log), NGHTTP2_PROTOCOL_ERROR);
    tear_down();
}

TEST(more_data_than_the_window_ends_the_connection) {
    static char much[16384];
    set_up_with(&(struct core_config){.stream_window = 65535,
                                      .connection_window = 16 << 20,
                                      .frame_size = 1 << 20,
                                      .max_streams_served = 100});
    greet();
    server.holds = true;
    write_headers(1, NGHTTP2_FLAG_END_HEADERS);

    for (int i = 0; i < 4; i++) {
        CHECK(!server.is_dead);
        write_frame(NGHTTP2_DATA, 0, 1, much, sizeof(much));
        feed_server();
    }

    CHECK(server.is_dead);
    CHECK_INT_EQ(goaway_code(&server.log), NGHTTP2_FLOW_CONTROL_ERROR);
    tear_down();
}
