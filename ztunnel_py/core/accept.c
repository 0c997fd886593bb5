/* SPDX-License-Identifier: Apache-2.0 */
/* See accept.h. */
#include "accept.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core_state.h"
#include "inbound.h"
#include "outbound.h"
#include "sock.h"
#include "tunnel.h"

#define BATCH 16 /* a turn; the others wait for their turn meanwhile */
#define BACKLOG_MAX 4096
#define BACK_OFF_NS (50 * NS_PER_MS)

/* One worker's side of a listener. */
struct accepting {
    struct worker *worker;
    struct listener *listener;
    struct watch watch;
    struct timer timer;    /* the end of a back-off */
    struct deferred again; /* the same, where there is no memory for a timer */
};

static bool is_exhausted(int error) {
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

static void count(struct worker *worker, bool is_source, bool is_opened) {
    stats_count(&worker->stats,
                is_source ? (is_opened ? EVENT_sockets_opened_source : EVENT_sockets_closed_source)
                          : (is_opened ? EVENT_sockets_opened_destination
                                       : EVENT_sockets_closed_destination));
}

static void accepted(struct worker *worker, const struct listener *listener, int fd,
                     const struct addr *src) {
    const bool is_source = listener->role == CORE_OUTBOUND;
    struct addr local;
    count(worker, is_source, true);
    const bool is_there = listener->role == CORE_INBOUND ? sock_local(fd, &local)
                                                         : sock_original_destination(fd, &local);
    if (!is_there) {
        close(fd);
        count(worker, is_source, false);
        return;
    }
    switch (listener->role) {
    case CORE_OUTBOUND:
        outbound_accepted(worker, listener->workload, fd, src, &local);
        break;
    case CORE_INBOUND:
        tunnel_accept(worker, listener->workload, fd, src, &local);
        break;
    case CORE_PASSTHROUGH:
        inbound_accepted(worker, listener->workload, fd, src, &local);
        break;
    case CORE_ROLES:
        break;
    }
}

/* Accepts up to `limit` connections; an errno if descriptors ran out, else 0. */
static int accept_some(struct worker *worker, const struct listener *listener, int limit) {
    for (int i = 0; i < limit; i++) {
        struct sockaddr_storage name;
        socklen_t len = sizeof(name);
        const int fd =
            accept4(listener->fd, (struct sockaddr *)&name, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            const struct addr src = addr_from_sockaddr((struct sockaddr *)&name);
            accepted(worker, listener, fd, &src);
        } else if (errno == EAGAIN) {
            return 0;
        } else if (is_exhausted(errno)) {
            return errno;
        } /* else that connection broke before it was accepted */
    }
    return 0;
}

static void back_off(struct accepting *accepting) {
    struct loop *const loop = &accepting->worker->loop;
    if (!loop_arm(loop, &accepting->timer, BACK_OFF_NS)) {
        loop_defer(loop, &accepting->again);
    }
}

static void ready(struct watch *watch, uint32_t events) {
    struct accepting *const accepting = CONTAINER_OF(watch, struct accepting, watch);
    struct worker *const worker = accepting->worker;
    (void)events;
    if (accept_some(worker, accepting->listener, BATCH) != 0) {
        /* It stays in the kernel's queue; spinning on it would starve the others. */
        stats_count(&worker->stats, EVENT_accept_exhausted);
        loop_unwatch(&worker->loop, watch);
        back_off(accepting);
    }
}

static void backed_off(struct timer *timer) {
    struct accepting *const accepting = CONTAINER_OF(timer, struct accepting, timer);
    accept_watch(accepting->worker, accepting->listener);
}

static void again(struct deferred *deferred) {
    struct accepting *const accepting = CONTAINER_OF(deferred, struct accepting, again);
    accept_watch(accepting->worker, accepting->listener);
}

bool accept_prepare(struct core *core, struct listener *listener) {
    listener->accepting =
        mem_alloc(&core->mem, MEM_LISTENER, core->config.n_workers * sizeof(struct accepting));
    if (listener->accepting == NULL) {
        return false;
    }
    for (size_t i = 0; i < core->config.n_workers; i++) {
        struct accepting *const accepting = &listener->accepting[i];
        accepting->worker = &core->workers[i];
        accepting->listener = listener;
        accepting->watch.fd = -1;
        accepting->watch.ready = ready;
        accepting->timer.expired = backed_off;
        deferred_init(&accepting->again, again);
    }
    return true;
}

void accept_forget(struct core *core, struct listener *listener) {
    mem_free(&core->mem, MEM_LISTENER, listener->accepting);
    listener->accepting = NULL;
}

void accept_watch(struct worker *worker, struct listener *listener) {
    struct accepting *const accepting = &listener->accepting[worker->index];
    if (listener->fd >= 0 && !loop_watch_listener(&worker->loop, &accepting->watch, listener->fd)) {
        back_off(accepting);
    }
}

void accept_unwatch(struct worker *worker, struct listener *listener) {
    struct accepting *const accepting = &listener->accepting[worker->index];
    loop_disarm(&worker->loop, &accepting->timer);
    list_remove(&accepting->again.link);
    loop_unwatch(&worker->loop, &accepting->watch);
}

void accept_backlog(struct worker *worker, struct listener *listener) {
    (void)accept_some(worker, listener, BACKLOG_MAX);
}
