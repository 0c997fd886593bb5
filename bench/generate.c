/* SPDX-License-Identifier: Apache-2.0 */
/* Generators that push as much as they can: bytes and new connections; see load.h. */
#include "load.h"
#include "net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- bulk ---- */

static void bulk_send(int epoll, uint64_t end)
{
    static char chunk[NET_CHUNK];
    while (net_now() < end) {
        struct epoll_event events[NET_BATCH];
        int n = epoll_wait(epoll, events, NET_BATCH, 10);
        for (int i = 0; i < n; i++) {
            int fd = *(const int *)events[i].data.ptr;
            if (send(fd, chunk, sizeof chunk, MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
                net_die("send");
            }
        }
    }
}

/* The bytes that the sink says have arrived, once it says so for all connections. */
static uint64_t bulk_confirm(int epoll, size_t n_open)
{
    uint64_t bytes = 0;
    while (n_open > 0) {
        struct epoll_event event = {0};
        if (epoll_wait(epoll, &event, 1, GRACE_S * 1000) != 1) {
            errno = ETIMEDOUT;
            net_die("the sink has not confirmed what was sent");
        }
        int fd = *(const int *)event.data.ptr;
        uint64_t count = 0;
        ssize_t n = recv(fd, &count, sizeof count, 0);
        if (n != sizeof count) {
            errno = n < 0 ? errno : ECONNRESET;
            net_die("ended before the sink had confirmed what was sent");
        }
        bytes += count;
        close(fd);
        n_open--;
    }
    return bytes;
}

void load_bulk(const struct job *job)
{
    int epoll = load_epoll();
    int *fds = calloc(job->n_conns, sizeof *fds);
    if (fds == NULL) {
        net_die("calloc");
    }
    uint64_t begin = net_now();
    for (size_t i = 0; i < job->n_conns; i++) {
        fds[i] = net_dial(&job->to, 0);
        if (fds[i] < 0) {
            net_die("connect");
        }
        net_watch(epoll, EPOLL_CTL_ADD, fds[i], EPOLLOUT, &fds[i]);
    }
    bulk_send(epoll, begin + job->amount);
    for (size_t i = 0; i < job->n_conns; i++) {
        (void)shutdown(fds[i], SHUT_WR);
        net_watch(epoll, EPOLL_CTL_MOD, fds[i], EPOLLIN, &fds[i]);
    }
    uint64_t bytes = bulk_confirm(epoll, job->n_conns);
    (void)printf("{\"bytes\": %ju, \"seconds\": %.6f}\n", (uintmax_t)bytes,
                 load_seconds(net_now() - begin));
    free(fds);
    close(epoll);
}

/* ---- new connections ---- */

/* One of the clients that open connection after connection. */
struct client {
    int fd;         /* -1 while it has none */
    bool is_sent;   /* its byte is on the way */
    bool is_echoed; /* and has come back */
    uint64_t begun; /* when the connection was dialled */
};

/* What a client does when its byte is back. */
enum ending { AWAIT_CLOSE, CLOSE, HOLD };

enum { SLICE = 1000, MAX_SLICES = 100, EDGE_SLICES = 5 };

/* The connections of all clients. */
struct tally {
    int epoll;
    enum ending ending;
    uint64_t n_ports; /* that connections take turns with */
    uint64_t n_begun;
    uint64_t n_done;
    uint64_t n_failed;
    int failure;                     /* errno of the last one that failed */
    uint64_t begin;                  /* of the whole */
    uint64_t slice_ends[MAX_SLICES]; /* when each SLICE connections were done */
    struct histogram took;
};

static void fail(struct tally *tally, int failure)
{
    tally->n_failed++;
    tally->failure = failure;
}

static void client_begin(struct tally *tally, struct client *client, const struct job *job)
{
    struct sockaddr_in to = job->to;
    uint16_t turn = (uint16_t)(tally->n_begun++ % tally->n_ports);
    to.sin_port = htons((uint16_t)(ntohs(to.sin_port) + turn));
    *client = (struct client){.fd = net_dial(&to, 0), .begun = net_now()};
    if (client->fd < 0) {
        fail(tally, errno);
        return;
    }
    net_watch(tally->epoll, EPOLL_CTL_ADD, client->fd, EPOLLIN | EPOLLOUT | EPOLLET, client);
}

static void client_end(struct tally *tally, struct client *client, int failure)
{
    if (failure != 0) {
        fail(tally, failure);
    } else {
        uint64_t now = net_now();
        uint64_t slice = tally->n_done++ / SLICE;
        if (slice < MAX_SLICES) {
            tally->slice_ends[slice] = now;
        }
        histogram_add(&tally->took, now - client->begun);
    }
    if (tally->ending == HOLD && failure == 0) {
        net_watch(tally->epoll, EPOLL_CTL_DEL, client->fd, 0, NULL); /* open until we exit */
    } else {
        close(client->fd);
    }
    client->fd = -1;
}

/* Events are edge-triggered: goes as far as it can. */
static void client_advance(struct tally *tally, struct client *client)
{
    char bytes[2];
    if (!client->is_sent) {
        int failure = net_error(client->fd);
        if (failure != 0 || send(client->fd, "x", 1, MSG_NOSIGNAL) != 1) {
            client_end(tally, client, failure != 0 ? failure : errno);
            return;
        }
        client->is_sent = true;
    }
    for (;;) {
        ssize_t n = recv(client->fd, bytes, sizeof bytes, 0);
        if (n < 0) {
            if (errno != EAGAIN) {
                client_end(tally, client, errno);
            }
            return;
        }
        client->is_echoed = client->is_echoed || n == 1;
        if (n == 0 || tally->ending != AWAIT_CLOSE) {
            client_end(tally, client, client->is_echoed ? 0 : ECONNRESET);
            return;
        }
    }
}

/* Begins a connection for every client that has none; returns how many clients have one. */
static size_t begin_all(struct tally *tally, struct client *clients, const struct job *job)
{
    bool is_over = net_now() >= tally->begin + job->amount || tally->n_failed >= MAX_FAILURES ||
                   tally->n_begun >= MAX_BEGUN;
    size_t n_open = 0;
    for (size_t i = 0; i < job->n_conns; i++) {
        if (clients[i].fd < 0 && !is_over) {
            client_begin(tally, &clients[i], job);
        }
        n_open += clients[i].fd >= 0;
    }
    return n_open;
}

static void run_clients(struct tally *tally, const struct job *job)
{
    struct client *clients = calloc(job->n_conns, sizeof *clients);
    if (clients == NULL) {
        net_die("calloc");
    }
    for (size_t i = 0; i < job->n_conns; i++) {
        clients[i].fd = -1;
    }
    tally->epoll = load_epoll();
    tally->begin = net_now();
    for (size_t n_open; (n_open = begin_all(tally, clients, job)) > 0;) {
        struct epoll_event events[NET_BATCH];
        int n = epoll_wait(tally->epoll, events, NET_BATCH, GRACE_S * 1000);
        for (int i = 0; i < n; i++) {
            client_advance(tally, events[i].data.ptr);
        }
        if (n == 0) {
            tally->n_failed += n_open;
            tally->failure = ETIMEDOUT;
            break;
        }
    }
    free(clients);
}

static void print_tally(const struct tally *tally)
{
    if (tally->n_done == 0) {
        errno = tally->failure;
        net_die("no connection succeeded");
    }
    (void)printf("{\"connections\": %ju, \"failed\": %ju, \"failure\": \"%s\", \"seconds\": %.6f, ",
                 (uintmax_t)tally->n_done, (uintmax_t)tally->n_failed,
                 tally->failure != 0 ? strerror(tally->failure) : "",
                 load_seconds(net_now() - tally->begin));
    histogram_print(&tally->took);
}

void load_connect(const struct job *job)
{
    static struct tally tally = {.ending = AWAIT_CLOSE, .n_ports = 1};
    run_clients(&tally, job);
    print_tally(&tally);
    (void)printf("}\n");
}

void load_hold(const struct job *job)
{
    static struct tally tally = {.ending = HOLD, .n_ports = 1};
    run_clients(&tally, job);
    print_tally(&tally);
    (void)printf("}\n");
}

void load_short(const struct job *job)
{
    static struct tally tally = {.ending = CLOSE};
    tally.n_ports = job->rate;
    run_clients(&tally, job);
    print_tally(&tally);
    uint64_t n = tally.n_done / SLICE < MAX_SLICES ? tally.n_done / SLICE : MAX_SLICES;
    if (n <= EDGE_SLICES) {
        errno = ETIME;
        net_die("too few connections to compare the first with the last");
    }
    const uint64_t *ends = tally.slice_ends;
    double edge = EDGE_SLICES * SLICE;
    (void)printf(", \"first_rate\": %.1f, \"last_rate\": %.1f}\n",
                 edge / load_seconds(ends[EDGE_SLICES - 1] - tally.begin),
                 edge / load_seconds(ends[n - 1] - ends[n - 1 - EDGE_SLICES]));
}
