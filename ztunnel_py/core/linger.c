/* SPDX-License-Identifier: Apache-2.0 */
/* See linger.h. */
#include "linger.h"

#include <errno.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker.h"

#define LOOK_NS NS_PER_S
#define READS_MAX 64
#define LINGERS_MAX 1024 /* of a worker; descriptors are not there for saying goodbye */

struct lingering {
    struct list link; /* among the lingers of the worker */
    struct worker *worker;
    struct watch watch;
    struct timer timer;
    struct grave grave;
    int unsent; /* bytes that the other side had not taken at the last look */
};

static void finish(struct lingering *linger) {
    struct worker *const worker = linger->worker;
    loop_close_fd(&worker->loop, &linger->watch);
    loop_disarm(&worker->loop, &linger->timer);
    list_remove(&linger->link);
    worker->n_lingers--;
    loop_bury(&worker->loop, &linger->grave, MEM_OTHER, linger);
}

static void ready(struct watch *watch, uint32_t events) {
    struct lingering *const linger = CONTAINER_OF(watch, struct lingering, watch);
    (void)events;
    for (int i = 0; i < READS_MAX; i++) {
        const ssize_t n = recv(watch->fd, linger->worker->wire_in, WIRE_SIZE, 0);
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n <= 0) {
            break;
        }
    }
    finish(linger); /* it ended, or it talks on and on */
}

static void look(struct timer *timer) {
    struct lingering *const linger = CONTAINER_OF(timer, struct lingering, timer);
    int unsent = 0;
    const bool is_moving = ioctl(linger->watch.fd, SIOCOUTQ, &unsent) == 0 && unsent > 0 &&
                           (linger->unsent < 0 || unsent < linger->unsent);
    linger->unsent = unsent;
    if (!is_moving || !loop_arm(&linger->worker->loop, timer, LOOK_NS)) {
        finish(linger);
    }
}

void linger_start(struct worker *worker, int fd) {
    (void)shutdown(fd, SHUT_WR);
    struct lingering *const linger = mem_alloc(worker->mem, MEM_OTHER, sizeof(*linger));
    if (linger == NULL) {
        close(fd);
        return;
    }
    linger->worker = worker;
    linger->unsent = -1;
    linger->watch.ready = ready;
    linger->timer.expired = look;
    if (!loop_watch(&worker->loop, &linger->watch, fd)) {
        mem_free(worker->mem, MEM_OTHER, linger);
        close(fd);
        return;
    }
    list_push(&worker->lingers, &linger->link);
    if (++worker->n_lingers > LINGERS_MAX) {
        finish(CONTAINER_OF(worker->lingers.next, struct lingering, link));
    }
    if (!loop_arm(&worker->loop, &linger->timer, LOOK_NS)) {
        finish(linger);
    }
}

void linger_clear(struct worker *worker) {
    while (!list_is_empty(&worker->lingers)) {
        finish(CONTAINER_OF(worker->lingers.next, struct lingering, link));
    }
}
