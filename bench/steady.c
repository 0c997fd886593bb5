/* SPDX-License-Identifier: Apache-2.0 */
/* Generators that wait for answers, keep to a rate, or do nothing for a while; see load.h. */
#include "load.h"
#include "net.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WARM_UP_NS = 50000000, HOLD_S = 300, OPEN_AT_ONCE = 64 };

/* A connection that asks and waits. */
struct asker {
    uint64_t asked;  /* when, or when it should have; 0 while it waits for nothing */
    size_t expected; /* bytes still to come of the answer */
    int fd;
};

static void send_all(const struct asker *asker, const char *bytes, size_t len)
{
    if (send(asker->fd, bytes, len, MSG_NOSIGNAL) != (ssize_t)len) {
        net_die("send");
    }
}

/* Returns whether the answer is complete. */
static bool asker_read(struct asker *asker)
{
    char bytes[NET_HTTP_ANSWER];
    ssize_t n = recv(asker->fd, bytes, sizeof bytes, 0);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN) {
            return false;
        }
        errno = n < 0 ? errno : ECONNRESET;
        net_die("the connection ended");
    }
    asker->expected -= (size_t)n;
    return asker->expected == 0;
}

static void await_answer(int epoll, size_t n_open)
{
    struct epoll_event events[NET_BATCH];
    while (n_open > 0) {
        int n = epoll_wait(epoll, events, NET_BATCH, GRACE_S * 1000);
        if (n <= 0) {
            errno = ETIMEDOUT;
            net_die("the first byte on a new connection");
        }
        for (int i = 0; i < n; i++) {
            struct asker *asker = events[i].data.ptr;
            if (asker->expected == 0) { /* connected, or not: then sending fails */
                int failure = net_error(asker->fd);
                if (failure != 0) {
                    errno = failure;
                    net_die("connect");
                }
                asker->expected = 1;
                send_all(asker, "x", 1);
                net_watch(epoll, EPOLL_CTL_MOD, asker->fd, EPOLLIN, asker);
            } else if (asker_read(asker)) {
                n_open--;
            }
        }
    }
}

/* Opens connections on which one byte has gone there and back. */
static struct asker *open_askers(int epoll, const struct job *job)
{
    struct asker *askers = calloc(job->n_conns, sizeof *askers);
    if (askers == NULL) {
        net_die("calloc");
    }
    for (size_t i = 0; i < job->n_conns;) {
        size_t n = 0;
        for (; i < job->n_conns && n < OPEN_AT_ONCE; i++, n++) {
            askers[i].fd = net_dial(&job->to, 0);
            if (askers[i].fd < 0) {
                net_die("connect");
            }
            net_watch(epoll, EPOLL_CTL_ADD, askers[i].fd, EPOLLOUT, &askers[i]);
        }
        await_answer(epoll, n);
    }
    return askers;
}

/* ---- ping-pong ---- */

static void ping(struct asker *asker)
{
    asker->asked = net_now();
    asker->expected = 1;
    send_all(asker, "x", 1);
}

void load_pingpong(const struct job *job)
{
    static struct histogram took;
    int epoll = load_epoll();
    struct asker *askers = open_askers(epoll, job);
    for (size_t i = 0; i < job->n_conns; i++) {
        ping(&askers[i]);
    }
    uint64_t begin = net_now();
    uint64_t rounds = 0;
    uint64_t now = begin;
    while (now < begin + job->amount) {
        struct epoll_event events[NET_BATCH];
        int n = epoll_wait(epoll, events, NET_BATCH, GRACE_S * 1000);
        if (n <= 0) {
            errno = ETIMEDOUT;
            net_die("a byte that did not come back");
        }
        for (int i = 0; i < n; i++) {
            struct asker *asker = events[i].data.ptr;
            if (!asker_read(asker)) {
                continue;
            }
            now = net_now();
            rounds++;
            if (now > begin + WARM_UP_NS) {
                histogram_add(&took, now - asker->asked);
            }
            ping(asker);
        }
    }
    (void)printf("{\"rounds\": %ju, \"seconds\": %.6f, ", (uintmax_t)rounds,
                 load_seconds(now - begin));
    histogram_print(&took);
    (void)printf("}\n");
    free(askers);
    close(epoll);
}

/* ---- questions at a fixed rate ---- */

/* What is sent, and how much comes back. */
struct question {
    const char *bytes;
    size_t len;        /* of bytes */
    size_t answer_len; /* of the answer */
};

/* Connections that wait for nothing, the last one used on top. */
struct idle_stack {
    struct asker **askers;
    size_t n;
};

/* Which request is due when. */
struct schedule {
    uint64_t begin;
    uint64_t rate;  /* a second */
    uint64_t n_all; /* requests to send */
    uint64_t n_sent;
};

static uint64_t next_due(const struct schedule *schedule)
{
    return schedule->begin + schedule->n_sent * 1000000000U / schedule->rate;
}

/* Sends what is due by now as far as connections are free; what must wait keeps its due time, so
 * that a slow answer is charged to all requests behind it. */
static void send_due(struct schedule *schedule, struct idle_stack *idle,
                     const struct question *question)
{
    uint64_t now = net_now();
    for (; idle->n > 0 && schedule->n_sent < schedule->n_all; schedule->n_sent++) {
        uint64_t due = next_due(schedule);
        if (due > now) {
            return;
        }
        struct asker *asker = idle->askers[--idle->n];
        asker->asked = due;
        asker->expected = question->answer_len;
        send_all(asker, question->bytes, question->len);
    }
}

/* Waits for answers until the next request is due, or longer if no connection is free. */
static int wait_until(int epoll, struct epoll_event *events, uint64_t due, bool is_free)
{
    uint64_t now = net_now();
    uint64_t left = due > now ? due - now : 0;
    if (!is_free) {
        left = UINT64_C(1000000000) * GRACE_S;
    }
    struct timespec wait = {.tv_sec = (time_t)(left / 1000000000U),
                            .tv_nsec = (long)(left % 1000000000U)};
    int n = epoll_pwait2(epoll, events, NET_BATCH, &wait, NULL);
    if (n < 0 || (n == 0 && !is_free)) {
        errno = n < 0 ? errno : ETIMEDOUT;
        net_die("an answer that did not come");
    }
    return n;
}

/* Opens connections on which nothing has been said. */
static struct asker *dial_askers(int epoll, const struct job *job)
{
    struct asker *askers = calloc(job->n_conns, sizeof *askers);
    if (askers == NULL) {
        net_die("calloc");
    }
    for (size_t i = 0; i < job->n_conns; i++) {
        askers[i].fd = net_dial(&job->to, 0);
        if (askers[i].fd < 0) {
            net_die("connect");
        }
        net_watch(epoll, EPOLL_CTL_ADD, askers[i].fd, EPOLLIN, &askers[i]);
    }
    const struct timespec settle = {.tv_nsec = 100000000};
    (void)nanosleep(&settle, NULL); /* all are connected before the first request is due */
    return askers;
}

/* Asks on connections that wait for nothing. */
static void ask_at_rate(int epoll, const struct job *job, struct asker *askers,
                        const struct question *question)
{
    static struct histogram took;
    struct idle_stack idle = {.askers = calloc(job->n_conns, sizeof(struct asker *))};
    if (idle.askers == NULL) {
        net_die("calloc");
    }
    for (size_t i = 0; i < job->n_conns; i++) {
        idle.askers[idle.n++] = &askers[i];
    }
    struct schedule schedule = {.begin = net_now(), .rate = job->rate};
    schedule.n_all = job->amount * job->rate / 1000000000U;
    while (took.n < schedule.n_all) {
        send_due(&schedule, &idle, question);
        bool is_free = idle.n > 0 && schedule.n_sent < schedule.n_all;
        struct epoll_event events[NET_BATCH];
        int n = wait_until(epoll, events, next_due(&schedule), is_free);
        for (int i = 0; i < n; i++) {
            struct asker *asker = events[i].data.ptr;
            if (asker_read(asker)) {
                histogram_add(&took, net_now() - asker->asked);
                idle.askers[idle.n++] = asker;
            }
        }
    }
    (void)printf("{\"requests\": %ju, \"seconds\": %.6f, ", (uintmax_t)took.n,
                 load_seconds(net_now() - schedule.begin));
    histogram_print(&took);
    (void)printf("}\n");
    free(idle.askers);
    free(askers);
    close(epoll);
}

void load_http(const struct job *job)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: server\r\n\r\n";
    const struct question question = {request, sizeof request - 1, NET_HTTP_ANSWER};
    int epoll = load_epoll();
    ask_at_rate(epoll, job, dial_askers(epoll, job), &question);
}

void load_pulse(const struct job *job)
{
    const struct question question = {"x", 1, 1};
    int epoll = load_epoll();
    ask_at_rate(epoll, job, open_askers(epoll, job), &question);
}

/* ---- idle connections ---- */

void load_idle(const struct job *job)
{
    int epoll = load_epoll();
    struct asker *askers = open_askers(epoll, job);
    (void)printf("{\"open\": %zu}\n", job->n_conns);
    (void)fflush(stdout);
    struct pollfd stdin_end = {.fd = STDIN_FILENO, .events = POLLIN};
    alarm(HOLD_S);
    (void)poll(&stdin_end, 1, -1);
    free(askers);
    close(epoll);
}
