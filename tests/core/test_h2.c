/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of h2.c: two sessions back to back in memory, and one against frames written by hand. */
#include "h2_stage.h"

/* --- the first flight --- */

TEST(a_servers_settings_are_exact) {
    static const uint8_t EXPECTED[] = {
        0, 0,    24, 4,    0, 0,   0, 0, 0, /* SETTINGS */
        0, 3,    0,  0,    0, 100,          /* MAX_CONCURRENT_STREAMS */
        0, 4,    0,  0x40, 0, 0,            /* INITIAL_WINDOW_SIZE */
        0, 5,    0,  0x10, 0, 0,            /* MAX_FRAME_SIZE */
        0, 6,    0,  1,    0, 0,            /* MAX_HEADER_LIST_SIZE */
        0, 0,    4,  8,    0, 0,   0, 0, 0, /* WINDOW_UPDATE */
        0, 0xff, 0,  1,                     /* to 16 MiB */
    };
    set_up();

    CHECK(h2_flush(&server.h2));

    CHECK_MEM_EQ(server.out.at, server.out.len, EXPECTED, sizeof(EXPECTED));
    tear_down();
}

TEST(a_clients_settings_are_exact) {
    static const uint8_t EXPECTED[] = {
        0, 0,    24, 4,    0,    0, 0, 0, 0, /* SETTINGS */
        0, 2,    0,  0,    0,    0,          /* ENABLE_PUSH */
        0, 4,    0,  0x40, 0,    0,          /* INITIAL_WINDOW_SIZE */
        0, 5,    0,  0x10, 0,    0,          /* MAX_FRAME_SIZE */
        0, 6,    0,  0,    0x40, 0,          /* MAX_HEADER_LIST_SIZE */
        0, 0,    4,  8,    0,    0, 0, 0, 0, /* WINDOW_UPDATE */
        0, 0xff, 0,  1,
    };
    const size_t magic = NGHTTP2_CLIENT_MAGIC_LEN;
    set_up();

    CHECK(h2_flush(&client.h2));

    CHECK_MEM_EQ(client.out.at, magic, NGHTTP2_CLIENT_MAGIC, magic);
    CHECK_MEM_EQ(client.out.at + magic, client.out.len - magic, EXPECTED, sizeof(EXPECTED));
    tear_down();
}

TEST(no_session_without_memory_of_its_own) {
    set_up(); /* nghttp2's own memory is not ours to fail; opening takes none of ours */
    CHECK_INT_EQ(mem.live[MEM_OTHER], 0);
    tear_down();
}

/* --- requests --- */

TEST(a_connect_is_read_as_it_was_written) {
    set_up();
    const struct h2_field fields[] = {
        {text_of("baggage"), text_of("a=1"), false},
        {text_of("forwarded"), text_of("for=\"10.0.0.1:5\";host=shop"), true},
        {text_of("baggage"), text_of("b=2"), false},
        {text_of("x-forwarded-network"), text_of("net2"), false},
        {text_of("traceparent"), text_of("00-1-2-00"), true},
    };

    CHECK(h2_connect(&client.h2, text_of("10.1.1.5:8080"), fields, ARRAY_LEN(fields)) != NULL);
    exchange(SIZE_MAX);

    CHECK_INT_EQ(server.n_requests, 1);
    CHECK_STR_EQ(server.request,
                 "CONNECT 10.1.1.5:8080 for=\"10.0.0.1:5\";host=shop net2 a=1 b=2 ");
    tear_down();
}

TEST(a_connect_in_single_bytes_is_the_same) {
    set_up();

    (void)open_stream();
    exchange(1);

    CHECK_STR_EQ(server.request, "CONNECT 10.1.1.5:8080 - - ");
    tear_down();
}

TEST(the_response_reaches_whoever_asked) {
    set_up();
    const struct header baggage = {text_of("baggage"), text_of("k=v")};
    struct leg *const leg = open_stream();
    exchange(SIZE_MAX);

    h2_respond(server.legs[0].stream, 200, &baggage, 1);
    exchange(SIZE_MAX);

    CHECK_INT_EQ(leg->status, 200);
    tear_down();
}

TEST(a_refusal_is_a_status_and_a_quiet_reset) {
    set_up();
    struct leg *const leg = open_stream();
    exchange(SIZE_MAX);

    h2_respond(server.legs[0].stream, 401, NULL, 0);
    let_go(&server.legs[0]);
    exchange(SIZE_MAX);

    CHECK_INT_EQ(leg->status, 401);
    CHECK(find_frame(&server.log, NGHTTP2_RST_STREAM, 1) != NULL);
    CHECK_INT_EQ(error_code(find_frame(&server.log, NGHTTP2_RST_STREAM, 1)), NGHTTP2_NO_ERROR);
    CHECK_INT_EQ(server.h2.n_streams, 0);
    tear_down();
}

TEST(a_header_list_that_is_too_long_is_answered_with_431) {
    static char value[16000];
    static const char LONG[] = "\0\1a\x7f\x81\x7c"; /* a header "a" of 16,000 bytes */
    set_up();
    greet();
    write_headers(1, 0);
    memset(value, 'x', sizeof(value));
    for (int i = 0; i < 5; i++) {
        char block[sizeof(LONG) - 1 + sizeof(value)];
        memcpy(block, LONG, sizeof(LONG) - 1);
        memcpy(block + sizeof(LONG) - 1, value, sizeof(value));
        write_frame(NGHTTP2_CONTINUATION, i == 4 ? NGHTTP2_FLAG_END_HEADERS : 0, 1, block,
                    sizeof(block));
    }
    feed_server();
    write_headers(3, NGHTTP2_FLAG_END_HEADERS);
    feed_server();

    CHECK_INT_EQ(server.n_requests, 1); /* the second */
    const uint8_t *const response = find_frame(&server.log, NGHTTP2_HEADERS, 1);
    CHECK(response != NULL && (response[4] & NGHTTP2_FLAG_END_STREAM) != 0);
    CHECK(memmem(response, H2_FRAME_HEADER + frame_len(response),
                 "\x48\x03"
                 "431",
                 5) != NULL ||
          memmem(response, H2_FRAME_HEADER + frame_len(response), "\x48\x82", 2) != NULL);
    CHECK_INT_EQ(error_code(find_frame(&server.log, NGHTTP2_RST_STREAM, 1)), NGHTTP2_NO_ERROR);
    CHECK(!server.is_dead);
    tear_down();
}

TEST(streams_beyond_the_most_are_refused_and_the_others_go_on) {
    set_up_with(&(struct core_config){.stream_window = 4 << 20,
                                      .connection_window = 16 << 20,
                                      .frame_size = 1 << 20,
                                      .max_streams_served = 3});
    greet();

    for (int32_t id = 1; id <= 9; id += 2) {
        write_headers(id, NGHTTP2_FLAG_END_HEADERS);
    }
    feed_server();

    CHECK(!server.is_dead);
    CHECK_INT_EQ(server.n_requests, 3);
    for (int32_t id = 7; id <= 9; id += 2) {
        CHECK_INT_EQ(error_code(find_frame(&server.log, NGHTTP2_RST_STREAM, id)),
                     NGHTTP2_REFUSED_STREAM);
    }
    tear_down();
}

TEST(a_stream_that_ends_makes_room_for_another) {
    set_up_with(&(struct core_config){.stream_window = 4 << 20,
                                      .connection_window = 16 << 20,
                                      .frame_size = 1 << 20,
                                      .max_streams_served = 1});
    struct leg *const leg = open_stream();
    exchange(SIZE_MAX);
    let_go(leg);
    exchange(SIZE_MAX);

    (void)open_stream();
    exchange(SIZE_MAX);

    CHECK_INT_EQ(server.n_requests, 2);
    tear_down();
}

TEST(an_outgoing_stream_limit_is_the_other_sides) {
    set_up();
    (void)open_stream();
    exchange(SIZE_MAX);

    CHECK_INT_EQ(h2_max_streams(&client.h2), 100);
    tear_down();
}

TEST(a_session_whose_stream_ids_are_used_up_opens_no_more) {
    set_up();
    (void)open_stream();
    exchange(SIZE_MAX);
    CHECK_INT_EQ(nghttp2_session_set_next_stream_id(client.h2.session, INT32_MAX), 0);

    struct leg *const last = open_stream();
    exchange(SIZE_MAX);

    CHECK(last != NULL);
    CHECK_INT_EQ(server.n_requests, 2);
    CHECK(!h2_can_open(&client.h2)); /* so that the pool takes another tunnel */
    CHECK(h2_connect(&client.h2, text_of("10.1.1.5:8080"), NULL, 0) == NULL);
    tear_down();
}

/* --- data --- */

TEST(data_arrives_both_ways) {
    set_up();
    join();

    CHECK_INT_EQ(offer(client.legs, "question", 8, false), 8);
    exchange(SIZE_MAX);
    CHECK_INT_EQ(offer(server.legs, "answer", 6, false), 6);
    exchange(SIZE_MAX);

    CHECK_MEM_EQ(server.legs[0].heard.at, server.legs[0].heard.len, "question", 8);
    CHECK_MEM_EQ(client.legs[0].heard.at, client.legs[0].heard.len, "answer", 6);
    CHECK_INT_EQ(client.h2.sent, 8);
    CHECK_INT_EQ(server.h2.received, 8);
    tear_down();
}

TEST(an_end_comes_with_the_last_data) {
    set_up();
    join();

    CHECK_INT_EQ(offer(client.legs, "bye", 3, true), 3);
    client.legs[0].stream->io.ops->end(&client.legs[0].stream->io, false);
    exchange(SIZE_MAX);

    const uint8_t *const frame = find_frame(&client.log, NGHTTP2_DATA, 1);
    CHECK(frame != NULL && (frame[4] & NGHTTP2_FLAG_END_STREAM) != 0);
    CHECK_INT_EQ(count_frames(&client.log, NGHTTP2_DATA), 1);
    CHECK(server.legs[0].has_ended);
    tear_down();
}

TEST(an_end_alone_is_an_empty_frame) {
    set_up();
    join();

    client.legs[0].stream->io.ops->end(&client.legs[0].stream->io, false);
    exchange(SIZE_MAX);

    CHECK(server.legs[0].has_ended);
    CHECK_INT_EQ(count_frames(&client.log, NGHTTP2_DATA), 1);
    CHECK_INT_EQ(server.h2.n_streams, 1);
    server.legs[0].stream->io.ops->end(&server.legs[0].stream->io, false);
    exchange(SIZE_MAX);
    CHECK(client.legs[0].has_ended);
    CHECK_INT_EQ(server.h2.n_streams, 0);
    CHECK_INT_EQ(client.h2.n_streams, 0);
    CHECK_INT_EQ(count_frames(&server.log, NGHTTP2_RST_STREAM), 0);
    tear_down();
}

/* A frame and its header fill whole TLS records. */
TEST(large_frames_fill_records) {
    static char much[IO_READ_MAX];
    set_up();
    join();

    CHECK_INT_EQ(offer(client.legs, much, sizeof(much), false), sizeof(much));
    exchange(SIZE_MAX);

    const uint8_t *const frame = find_frame(&client.log, NGHTTP2_DATA, 1);
    CHECK_INT_EQ((frame_len(frame) + H2_FRAME_HEADER) % 16384, 0);
    CHECK_INT_EQ(server.legs[0].heard.len, sizeof(server.legs[0].heard.at));
    tear_down();
}

TEST(credit_of_a_stream_returns_as_it_is_consumed) {
    static char much[IO_READ_MAX];
    set_up();
    join();
    server.legs[0].holds = true;
    size_t sent = 0;

    for (size_t taken = 1; taken > 0; sent += taken) {
        taken = offer(client.legs, much, sizeof(much), false);
        exchange(SIZE_MAX);
    }
    CHECK_INT_EQ(sent, 4 << 20);
    CHECK_INT_EQ(client.legs[0].n_writable, 0);

    server.legs[0].stream->io.ops->consumed(&server.legs[0].stream->io, sent);
    exchange(SIZE_MAX);

    CHECK(client.legs[0].n_writable > 0);
    CHECK(offer(client.legs, much, sizeof(much), false) > 0);
    tear_down();
}

TEST(stalled_readers_do_not_take_the_connections_credit) {
    static char much[IO_READ_MAX];
    set_up();
    for (int i = 0; i < 6; i++) { /* six windows of 4 MiB are more than the connection's 16 */
        join();
        server.legs[i].holds = i < 5;
    }

    for (int i = 0; i < 5; i++) {
        while (offer(&client.legs[i], much, sizeof(much), false) > 0) {
            exchange(SIZE_MAX);
        }
    }

    CHECK_INT_EQ(offer(&client.legs[5], "through", 7, false), 7);
    exchange(SIZE_MAX);
    CHECK_MEM_EQ(server.legs[5].heard.at, server.legs[5].heard.len, "through", 7);
    tear_down();
}

TEST(nothing_can_be_offered_while_the_way_out_is_full) {
    set_up();
    join();
    client.h2.is_congested = true;

    CHECK_INT_EQ(offer(client.legs, "x", 1, false), 0);
    CHECK_INT_EQ(h2_window(client.legs[0].stream), 0);

    client.h2.is_congested = false;
    CHECK_INT_EQ(offer(client.legs, "x", 1, false), 1);
    tear_down();
}

/* --- resets --- */

TEST(letting_go_of_a_stream_resets_it_with_cancel_which_reads_as_an_end) {
    set_up();
    join();

    let_go(&client.legs[0]);
    exchange(SIZE_MAX);

    CHECK_INT_EQ(error_code(find_frame(&client.log, NGHTTP2_RST_STREAM, 1)), NGHTTP2_CANCEL);
    CHECK(server.legs[0].has_ended && !server.legs[0].has_failed);
    CHECK_INT_EQ(server.h2.n_streams, 0);
    tear_down();
}

TEST(a_loud_reset_is_a_failure) {
    set_up();
    join();

    h2_reset(client.legs[0].stream, NGHTTP2_INTERNAL_ERROR);
    exchange(SIZE_MAX);

    CHECK(server.legs[0].has_failed && server.legs[0].error.is_reset);
    CHECK_INT_EQ(server.legs[0].error.code, NGHTTP2_INTERNAL_ERROR);
    tear_down();
}

TEST(a_reset_before_the_response_breaks_the_request) {
    set_up();
    struct leg *const leg = open_stream();
    exchange(SIZE_MAX);

    h2_reset(server.legs[0].stream, NGHTTP2_REFUSED_STREAM);
    exchange(SIZE_MAX);

    CHECK(leg->has_broken && leg->error.is_reset);
    CHECK_INT_EQ(leg->error.code, NGHTTP2_REFUSED_STREAM);
    tear_down();
}

/* --- the end of a connection --- */

TEST(pings_are_answered_and_told_apart) {
    set_up();
    exchange(SIZE_MAX);

    h2_ping(&server.h2, false);
    exchange(SIZE_MAX);
    CHECK(server.n_pongs == 1 && server.n_drain_pongs == 0);
    h2_ping(&server.h2, true);
    exchange(SIZE_MAX);

    CHECK(server.n_pongs == 1 && server.n_drain_pongs == 1);
    tear_down();
}

TEST(goaway_lets_what_runs_finish_and_stops_new_streams) {
    set_up();
    join();

    h2_goaway(&server.h2, H2_LAST_STREAM);
    exchange(SIZE_MAX);

    CHECK_INT_EQ(client.n_goaways, 1);
    CHECK(!h2_can_open(&client.h2));
    CHECK_INT_EQ(offer(client.legs, "on", 2, false), 2);
    exchange(SIZE_MAX);
    CHECK_MEM_EQ(server.legs[0].heard.at, server.legs[0].heard.len, "on", 2);
    tear_down();
}

TEST(streams_that_come_behind_a_refusal_are_refused_and_the_last_one_is_told) {
    set_up();
    join();
    h2_goaway(&server.h2, H2_LAST_STREAM);
    CHECK(h2_flush(&server.h2));
    struct leg *const late = open_stream(); /* does not know yet */
    h2_refuse(&server.h2);

    exchange(SIZE_MAX);

    CHECK(late->has_broken);
    CHECK_INT_EQ(last_stream(&server.log), 1);
    CHECK(!client.legs[0].has_failed && !server.legs[0].has_failed);
    tear_down();
}

TEST(closing_with_streams_leaves_them_to_those_who_hold_them) {
    set_up();
    join();

    h2_close(&server.h2);

    CHECK(server.legs[0].stream->io.is_broken);
    CHECK_INT_EQ(mem.live[MEM_STREAM], 2);
    let_go(&server.legs[0]);
    loop_turn(&loop, 0);
    CHECK_INT_EQ(mem.live[MEM_STREAM], 1);
    tear_down();
}

/* --- memory --- */

TEST(a_request_without_memory_costs_its_stream) {
    uint64_t n = 0;
    unsigned n_requests = 0;
    while (n_requests == 0) {
        set_up();
        greet();
        mem_fail_at(++n);
        write_headers(1, NGHTTP2_FLAG_END_HEADERS);
        feed_server();
        const bool has_failed = mem_has_failed();
        mem_fail_at(0);

        n_requests = server.n_requests;
        CHECK(has_failed == (n_requests == 0));
        CHECK(!server.is_dead);
        write_headers(3, NGHTTP2_FLAG_END_HEADERS);
        feed_server();
        CHECK_INT_EQ(server.n_requests, n_requests + 1);
        tear_down();
    }
    CHECK(n > 3);
}

TEST(a_stream_cannot_be_opened_without_memory) {
    set_up();
    mem_fail_at(1);

    CHECK(h2_connect(&client.h2, text_of("a:1"), NULL, 0) == NULL);

    CHECK_INT_EQ(client.h2.n_streams, 0);
    tear_down();
}
