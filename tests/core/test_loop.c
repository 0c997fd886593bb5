/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of loop.c: messages, timers under a manual clock, descriptors, the end of a turn. */
#include "loop.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "check.h"

static struct mem mem;
static struct loop loop;

/* What happened, one letter each. */
static char trail[256];

static void note(char what) {
    const size_t len = strlen(trail);
    CHECK(len + 1 < sizeof(trail));
    trail[len] = what;
    trail[len + 1] = '\0';
}

static void set_up(void) {
    CHECK(loop_open(&loop, &mem, true));
}

static void tear_down(void) {
    loop_close(&loop);
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
}

/* --- messages */

struct letter {
    struct message message;
    char what;
    unsigned left; /* times that it posts itself again */
};

static void letter_run(struct message *message) {
    struct letter *const letter = CONTAINER_OF(message, struct letter, message);
    note(letter->what);
    if (letter->left > 0) {
        letter->left--;
        loop_post(&loop, message);
    }
}

TEST(messages_run_in_the_order_in_which_they_were_sent) {
    struct letter a = {{NULL, letter_run}, 'a', 0};
    struct letter b = {{NULL, letter_run}, 'b', 0};
    set_up();

    loop_post(&loop, &b.message);
    loop_post(&loop, &a.message);
    CHECK_STR_EQ(trail, "");
    loop_turn(&loop, -1);

    CHECK_STR_EQ(trail, "ba");
    tear_down();
}

TEST(a_message_may_be_sent_again_while_it_runs) {
    struct letter a = {{NULL, letter_run}, 'a', 2};
    set_up();

    loop_post(&loop, &a.message);
    for (int i = 0; i < 3; i++) {
        loop_turn(&loop, -1);
    }
    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "aaa");
    tear_down();
}

struct counter {
    struct message message;
    _Atomic bool is_free;
};

static unsigned n_counted;

static void counter_run(struct message *message) {
    struct counter *const counter = CONTAINER_OF(message, struct counter, message);
    n_counted++;
    counter->is_free = true;
}

#define MANY 20000

static void *post_many(void *argument) {
    struct counter *const counter = argument;
    for (int i = 0; i < MANY; i++) {
        while (!counter->is_free) {
            sched_yield();
        }
        counter->is_free = false;
        loop_post(&loop, &counter->message);
    }
    return NULL;
}

TEST(a_loop_that_sleeps_hears_every_message_of_other_threads) {
    struct counter counters[2] = {{{NULL, counter_run}, true}, {{NULL, counter_run}, true}};
    pthread_t threads[2];
    set_up();
    for (size_t i = 0; i < 2; i++) {
        CHECK_INT_EQ(pthread_create(&threads[i], NULL, post_many, &counters[i]), 0);
    }

    while (n_counted < 2 * MANY) {
        loop_turn(&loop, -1);
    }

    for (size_t i = 0; i < 2; i++) {
        CHECK_INT_EQ(pthread_join(threads[i], NULL), 0);
    }
    tear_down();
}

static void stop_run(struct message *message) {
    (void)message;
    note('s');
    loop_stop(&loop);
}

static void *run_loop(void *unused) {
    (void)unused;
    loop_run(&loop);
    return NULL;
}

TEST(a_loop_runs_until_it_is_stopped) {
    struct message stop = {NULL, stop_run};
    pthread_t thread;
    set_up();
    CHECK_INT_EQ(pthread_create(&thread, NULL, run_loop, NULL), 0);

    loop_post(&loop, &stop);

    CHECK_INT_EQ(pthread_join(thread, NULL), 0);
    CHECK_STR_EQ(trail, "s");
    tear_down();
}

/* --- timers */

struct alarm_clock {
    struct timer timer;
    char what;
    uint64_t again_ns; /* arms itself again, once */
    uint64_t rang_ns;
};

static void ring(struct timer *timer) {
    struct alarm_clock *const clock = CONTAINER_OF(timer, struct alarm_clock, timer);
    note(clock->what);
    clock->rang_ns = loop.now_ns;
    if (clock->again_ns > 0) {
        CHECK(loop_arm(&loop, timer, clock->again_ns));
        clock->again_ns = 0;
    }
}

TEST(timers_ring_in_the_order_of_their_deadlines_at_their_time) {
    struct alarm_clock clocks[5];
    static const uint64_t AFTER[] = {30, 10, 50, 20, 40};
    set_up();
    const uint64_t start = loop.now_ns;
    for (size_t i = 0; i < 5; i++) {
        clocks[i] = (struct alarm_clock){.timer = {.expired = ring}, .what = (char)('a' + i)};
        CHECK(loop_arm(&loop, &clocks[i].timer, AFTER[i]));
    }

    loop_advance(&loop, 45);
    CHECK_STR_EQ(trail, "bdae");
    CHECK_INT_EQ(loop.now_ns, start + 45);
    loop_advance(&loop, 5);

    CHECK_STR_EQ(trail, "bdaec");
    for (size_t i = 0; i < 5; i++) {
        CHECK_INT_EQ(clocks[i].rang_ns, start + AFTER[i]);
    }
    tear_down();
}

TEST(time_stands_still_until_it_is_moved) {
    struct alarm_clock clock = {.timer = {.expired = ring}, .what = 'a'};
    set_up();
    const uint64_t start = loop.now_ns;
    CHECK(loop_arm(&loop, &clock.timer, 1));

    loop_turn(&loop, 2);

    CHECK_INT_EQ(loop.now_ns, start);
    CHECK_STR_EQ(trail, "");
    tear_down();
}

TEST(a_timer_that_is_armed_again_has_its_new_deadline_only) {
    struct alarm_clock a = {.timer = {.expired = ring}, .what = 'a'};
    struct alarm_clock b = {.timer = {.expired = ring}, .what = 'b'};
    set_up();
    CHECK(loop_arm(&loop, &a.timer, 10));
    CHECK(loop_arm(&loop, &b.timer, 20));

    CHECK(loop_arm(&loop, &a.timer, 30));
    loop_advance(&loop, 25);
    CHECK_STR_EQ(trail, "b");
    CHECK(loop_arm(&loop, &a.timer, 1));
    loop_advance(&loop, 1);

    CHECK_STR_EQ(trail, "ba");
    loop_advance(&loop, 100);
    CHECK_STR_EQ(trail, "ba");
    tear_down();
}

TEST(a_disarmed_timer_does_not_ring) {
    struct alarm_clock clocks[9];
    set_up();
    for (size_t i = 0; i < 9; i++) {
        clocks[i] = (struct alarm_clock){.timer = {.expired = ring}, .what = (char)('a' + i)};
        CHECK(loop_arm(&loop, &clocks[i].timer, 100 - i));
    }

    loop_disarm(&loop, &clocks[8].timer);
    loop_disarm(&loop, &clocks[4].timer);
    loop_disarm(&loop, &clocks[0].timer);
    loop_disarm(&loop, &clocks[0].timer);
    loop_advance(&loop, 100);

    CHECK_STR_EQ(trail, "hgfdcb");
    tear_down();
}

TEST(a_timer_may_arm_itself_while_it_rings) {
    struct alarm_clock clock = {.timer = {.expired = ring}, .what = 'a', .again_ns = 10};
    set_up();
    CHECK(loop_arm(&loop, &clock.timer, 10));

    loop_advance(&loop, 30);

    CHECK_STR_EQ(trail, "aa");
    tear_down();
}

TEST(thousands_of_timers_ring_in_order) {
    static struct alarm_clock clocks[5000];
    uint64_t random = 1;
    uint64_t before = 0;
    set_up();
    for (size_t i = 0; i < ARRAY_LEN(clocks); i++) {
        random = random * 6364136223846793005U + 1442695040888963407U;
        clocks[i].timer.due_ns = 0;
        CHECK(loop_arm(&loop, &clocks[i].timer, random >> 44));
    }
    for (size_t i = 0; i < ARRAY_LEN(clocks); i += 3) {
        loop_disarm(&loop, &clocks[i].timer);
    }

    while (loop.n_timers > 0) {
        CHECK(loop.timers[0]->due_ns >= before);
        before = loop.timers[0]->due_ns;
        loop_disarm(&loop, loop.timers[0]);
    }
    tear_down();
}

TEST(a_timer_that_finds_no_memory_is_not_armed) {
    struct alarm_clock clock = {.timer = {.expired = ring}, .what = 'a'};
    set_up();

    mem_fail_at(1);
    CHECK(!loop_arm(&loop, &clock.timer, 1));

    loop_disarm(&loop, &clock.timer);
    loop_advance(&loop, 10);
    CHECK_STR_EQ(trail, "");
    tear_down();
}

TEST(with_the_real_clock_timers_ring_by_themselves) {
    struct alarm_clock clock = {.timer = {.expired = ring}, .what = 'a'};
    CHECK(loop_open(&loop, &mem, false));
    const uint64_t start = loop_clock_ns();
    CHECK(loop_arm(&loop, &clock.timer, 20 * NS_PER_MS));

    while (trail[0] == '\0') {
        loop_turn(&loop, -1);
    }

    CHECK(loop_clock_ns() - start >= 19 * NS_PER_MS);
    tear_down();
}

/* --- descriptors */

struct observer {
    struct watch watch;
    char what;
    struct observer *closes; /* unwatched when this one is ready */
};

static void observe(struct watch *watch, uint32_t events) {
    struct observer *const observer = CONTAINER_OF(watch, struct observer, watch);
    if ((events & EPOLLIN) != 0) {
        note(observer->what);
    }
    if (observer->closes != NULL) {
        loop_unwatch(&loop, &observer->closes->watch);
    }
}

static void pair(int fds[2]) {
    CHECK_INT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
}

static void send_byte(int fd) {
    CHECK_INT_EQ(write(fd, "x", 1), 1);
}

TEST(a_descriptor_is_reported_once_for_each_change) {
    struct observer observer = {.watch = {observe, -1}, .what = 'r'};
    int fds[2];
    set_up();
    pair(fds);
    CHECK(loop_watch(&loop, &observer.watch, fds[0]));
    CHECK_INT_EQ(observer.watch.fd, fds[0]);
    loop_turn(&loop, 0);
    CHECK_STR_EQ(trail, "");

    send_byte(fds[1]);
    loop_turn(&loop, 0);
    loop_turn(&loop, 0);
    CHECK_STR_EQ(trail, "r");
    send_byte(fds[1]);
    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "rr");
    loop_unwatch(&loop, &observer.watch);
    (void)close(fds[0]);
    (void)close(fds[1]);
    tear_down();
}

TEST(nothing_is_heard_of_a_descriptor_that_was_unwatched) {
    struct observer observer = {.watch = {observe, -1}, .what = 'r'};
    int fds[2];
    set_up();
    pair(fds);
    CHECK(loop_watch(&loop, &observer.watch, fds[0]));
    send_byte(fds[1]);

    loop_unwatch(&loop, &observer.watch);
    loop_unwatch(&loop, &observer.watch);
    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "");
    CHECK_INT_EQ(observer.watch.fd, -1);
    (void)close(fds[0]);
    (void)close(fds[1]);
    tear_down();
}

TEST(unwatching_drops_the_events_of_the_same_batch) {
    struct observer a = {.watch = {observe, -1}, .what = 'r'};
    struct observer b = {.watch = {observe, -1}, .what = 'r'};
    int a_fds[2], b_fds[2];
    a.closes = &b;
    b.closes = &a;
    set_up();
    pair(a_fds);
    pair(b_fds);
    CHECK(loop_watch(&loop, &a.watch, a_fds[0]));
    CHECK(loop_watch(&loop, &b.watch, b_fds[0]));
    send_byte(a_fds[1]);
    send_byte(b_fds[1]);

    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "r");
    loop_unwatch(&loop, &a.watch);
    loop_unwatch(&loop, &b.watch);
    for (size_t i = 0; i < 2; i++) {
        (void)close(a_fds[i]);
        (void)close(b_fds[i]);
    }
    tear_down();
}

TEST(a_descriptor_that_cannot_be_watched_is_refused) {
    struct observer observer = {.watch = {observe, 5}, .what = 'r'};
    set_up();

    CHECK(!loop_watch(&loop, &observer.watch, 1000000));

    CHECK_INT_EQ(observer.watch.fd, -1);
    loop_unwatch(&loop, &observer.watch);
    tear_down();
}

TEST(a_listener_is_reported_until_it_was_served) {
    struct observer observer = {.watch = {observe, -1}, .what = 'l'};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(at);
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    const int client = socket(AF_INET, SOCK_STREAM, 0);
    set_up();
    CHECK_INT_EQ(bind(listener, (struct sockaddr *)&at, len), 0);
    CHECK_INT_EQ(listen(listener, 8), 0);
    CHECK_INT_EQ(getsockname(listener, (struct sockaddr *)&at, &len), 0);
    CHECK(loop_watch_listener(&loop, &observer.watch, listener));

    CHECK_INT_EQ(connect(client, (struct sockaddr *)&at, len), 0);
    loop_turn(&loop, 0);
    loop_turn(&loop, 0);
    CHECK_STR_EQ(trail, "ll");
    const int served = accept(listener, NULL, NULL);
    CHECK(served >= 0);
    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "ll");
    loop_unwatch(&loop, &observer.watch);
    (void)close(served);
    (void)close(client);
    (void)close(listener);
    tear_down();
}

/* --- the end of a turn */

struct chore {
    struct deferred deferred;
    char what;
    unsigned left;       /* times that it puts itself off again */
    struct chore *flush; /* put off to the very end by this one */
};

static void chore_run(struct deferred *deferred) {
    struct chore *const chore = CONTAINER_OF(deferred, struct chore, deferred);
    note(chore->what);
    if (chore->left > 0) {
        chore->left--;
        loop_defer(&loop, deferred);
    }
    if (chore->flush != NULL) {
        loop_defer_flush(&loop, &chore->flush->deferred);
    }
}

static struct chore chore(char what) {
    struct chore made = {.what = what};
    made.deferred.run = chore_run;
    return made;
}

TEST(work_put_off_is_done_once_at_the_end_of_the_turn) {
    struct chore a = chore('a'), b = chore('b');
    struct letter message = {{NULL, letter_run}, 'm', 0};
    set_up();
    deferred_init(&a.deferred, chore_run);
    deferred_init(&b.deferred, chore_run);

    loop_defer(&loop, &b.deferred);
    loop_defer(&loop, &a.deferred);
    loop_defer(&loop, &b.deferred);
    loop_post(&loop, &message.message);
    loop_turn(&loop, 0);
    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "mba");
    tear_down();
}

TEST(work_put_off_again_waits_for_the_next_turn_which_does_not_sleep) {
    struct chore a = chore('a');
    set_up();
    deferred_init(&a.deferred, chore_run);
    a.left = 2;

    loop_defer(&loop, &a.deferred);
    loop_turn(&loop, -1);
    CHECK_STR_EQ(trail, "a");
    loop_turn(&loop, -1);
    CHECK_STR_EQ(trail, "aa");
    loop_turn(&loop, -1);

    CHECK_STR_EQ(trail, "aaa");
    tear_down();
}

TEST(of_slow_work_a_few_are_done_in_a_turn_and_the_next_one_does_not_sleep) {
    static struct chore chores[40];
    set_up();
    for (size_t i = 0; i < ARRAY_LEN(chores); i++) {
        chores[i] = (struct chore){.what = 's'};
        deferred_init(&chores[i].deferred, chore_run);
        loop_defer_slow(&loop, &chores[i].deferred);
        loop_defer_slow(&loop, &chores[i].deferred); /* waits once */
    }

    loop_turn(&loop, -1);
    const size_t first = strlen(trail);
    loop_turn(&loop, -1);
    loop_turn(&loop, -1);

    CHECK(first > 0 && first < ARRAY_LEN(chores));
    CHECK_INT_EQ(strlen(trail), ARRAY_LEN(chores));
    tear_down();
}

TEST(flushes_come_after_all_work) {
    struct chore a = chore('a'), b = chore('b'), f = chore('f'), g = chore('g');
    set_up();
    deferred_init(&a.deferred, chore_run);
    deferred_init(&b.deferred, chore_run);
    deferred_init(&f.deferred, chore_run);
    deferred_init(&g.deferred, chore_run);
    a.flush = &f;
    f.flush = &g;

    loop_defer(&loop, &a.deferred);
    loop_defer(&loop, &b.deferred);
    loop_turn(&loop, 0);

    CHECK_STR_EQ(trail, "abfg");
    tear_down();
}

struct mortal {
    struct grave grave;
    char what;
};

TEST(what_is_buried_lives_until_the_turn_is_over) {
    struct mortal *const mortal = mem_alloc(&mem, MEM_CONN, sizeof(*mortal));
    struct chore a = chore('a');
    set_up();
    deferred_init(&a.deferred, chore_run);
    loop_defer(&loop, &a.deferred);

    loop_bury(&loop, &mortal->grave, MEM_CONN, mortal);
    mortal->what = 'x';
    CHECK_INT_EQ(mem.live[MEM_CONN], 1);
    loop_turn(&loop, 0);

    CHECK_INT_EQ(mem.live[MEM_CONN], 0);
    tear_down();
}

TEST(there_is_no_loop_without_memory) {
    mem_fail_at(1);

    CHECK(!loop_open(&loop, &mem, true));

    CHECK_INT_EQ(mem.live[MEM_OTHER], 0);
}
