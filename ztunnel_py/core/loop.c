/* SPDX-License-Identifier: Apache-2.0 */
/* See loop.h. */
#include "loop.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define BATCH 256
#define SLOW_PER_TURN 16
#define BUSY_WINDOW_NS (100 * NS_PER_MS)
#define MANUAL_START_NS (1000 * NS_PER_S)

uint64_t loop_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* --- timers: a binary heap --- */

static void timer_place(struct loop *loop, size_t at, struct timer *timer) {
    loop->timers[at] = timer;
    timer->place = at + 1;
}

static void timer_up(struct loop *loop, size_t at) {
    struct timer *const moving = loop->timers[at];
    while (at > 0) {
        const size_t parent = (at - 1) / 2;
        if (loop->timers[parent]->due_ns <= moving->due_ns) {
            break;
        }
        timer_place(loop, at, loop->timers[parent]);
        at = parent;
    }
    timer_place(loop, at, moving);
}

static void timer_down(struct loop *loop, size_t at) {
    struct timer *const moving = loop->timers[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= loop->n_timers) {
            break;
        }
        if (child + 1 < loop->n_timers &&
            loop->timers[child + 1]->due_ns < loop->timers[child]->due_ns) {
            child++;
        }
        if (moving->due_ns <= loop->timers[child]->due_ns) {
            break;
        }
        timer_place(loop, at, loop->timers[child]);
        at = child;
    }
    timer_place(loop, at, moving);
}

static bool timers_grow(struct loop *loop) {
    const size_t size = loop->timers_size == 0 ? 64 : 2 * loop->timers_size;
    struct timer **const grown = mem_alloc(loop->mem, MEM_CORE, size * sizeof(*grown));
    if (grown == NULL) {
        return false;
    }
    if (loop->n_timers > 0) {
        memcpy(grown, loop->timers, loop->n_timers * sizeof(struct timer *));
    }
    mem_free(loop->mem, MEM_CORE, loop->timers);
    loop->timers = grown;
    loop->timers_size = size;
    return true;
}

bool loop_arm(struct loop *loop, struct timer *timer, uint64_t after_ns) {
    const uint64_t due = loop->now_ns + after_ns;
    if (timer->place == 0) {
        if (loop->n_timers == loop->timers_size && !timers_grow(loop)) {
            return false;
        }
        timer_place(loop, loop->n_timers++, timer);
    }
    timer->due_ns = due;
    timer_up(loop, timer->place - 1);
    timer_down(loop, timer->place - 1);
    return true;
}

void loop_disarm(struct loop *loop, struct timer *timer) {
    if (timer->place == 0) {
        return;
    }
    const size_t at = timer->place - 1;
    timer->place = 0;
    struct timer *const last = loop->timers[--loop->n_timers];
    if (last != timer) {
        timer_place(loop, at, last);
        timer_up(loop, at);
        timer_down(loop, last->place - 1);
    }
}

/* Runs timers that are due at `until`; with a manual clock time moves along with them. */
static void timers_run(struct loop *loop, uint64_t until) {
    while (loop->n_timers > 0 && loop->timers[0]->due_ns <= until) {
        struct timer *const timer = loop->timers[0];
        if (loop->is_manual && timer->due_ns > loop->now_ns) {
            loop->now_ns = timer->due_ns;
        }
        loop_disarm(loop, timer);
        timer->expired(timer);
    }
}

/* --- descriptors --- */

static bool watch_add(struct loop *loop, struct watch *watch, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        watch->fd = -1;
        return false;
    }
    watch->fd = fd;
    return true;
}

bool loop_watch(struct loop *loop, struct watch *watch, int fd) {
    return watch_add(loop, watch, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

bool loop_watch_listener(struct loop *loop, struct watch *watch, int fd) {
    return watch_add(loop, watch, fd, EPOLLIN | EPOLLEXCLUSIVE);
}

/* Drops what this batch still has for it. */
static void drop_events(struct loop *loop, struct watch *watch) {
    watch->fd = -1;
    struct epoll_event *const batch = loop->batch;
    for (int i = loop->batch_at; i < loop->batch_len; i++) {
        if (batch[i].data.ptr == watch) {
            batch[i].data.ptr = NULL;
        }
    }
}

void loop_unwatch(struct loop *loop, struct watch *watch) {
    if (watch->fd >= 0) {
        (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL); /* it is registered */
        drop_events(loop, watch);
    }
}

void loop_close_fd(struct loop *loop, struct watch *watch) {
    if (watch->fd >= 0) {
        const int fd = watch->fd;
        drop_events(loop, watch);
        close(fd);
    }
}

/* --- deferred work and graves --- */

void deferred_init(struct deferred *deferred, void (*run)(struct deferred *deferred)) {
    list_init(&deferred->link);
    deferred->run = run;
}

void loop_defer(struct loop *loop, struct deferred *deferred) {
    if (list_is_empty(&deferred->link)) {
        list_push(&loop->work, &deferred->link);
    }
}

void loop_defer_flush(struct loop *loop, struct deferred *deferred) {
    if (list_is_empty(&deferred->link)) {
        list_push(&loop->flushes, &deferred->link);
    }
}

void loop_defer_slow(struct loop *loop, struct deferred *deferred) {
    if (list_is_empty(&deferred->link)) {
        list_push(&loop->slow, &deferred->link);
    }
}

void loop_bury(struct loop *loop, struct grave *grave, enum mem_kind kind, void *pointer) {
    grave->next = loop->graves;
    grave->kind = kind;
    grave->pointer = pointer;
    loop->graves = grave;
}

static void run_some(struct list *from, int limit) {
    struct list *node;
    while (limit-- > 0 && (node = list_pop(from)) != NULL) {
        struct deferred *const deferred = CONTAINER_OF(node, struct deferred, link);
        deferred->run(deferred);
    }
}

static void run_all(struct list *from) {
    struct list now;
    list_init(&now);
    list_splice(&now, from);
    run_some(&now, INT_MAX);
}

/* The end of a turn: work once, some of the slow one, then flushes until none is left, then what
 * died. */
static void finish_turn(struct loop *loop) {
    run_all(&loop->work);
    run_some(&loop->slow, SLOW_PER_TURN);
    while (!list_is_empty(&loop->flushes)) {
        run_all(&loop->flushes);
    }
    while (loop->graves != NULL) {
        const struct grave grave = *loop->graves;
        mem_free(loop->mem, grave.kind, grave.pointer);
        loop->graves = grave.next;
    }
}

/* --- messages --- */

void loop_post(struct loop *loop, struct message *message) {
    message->next = NULL;
    pthread_mutex_lock(&loop->lock);
    if (loop->inbox_last != NULL) {
        loop->inbox_last->next = message;
    } else {
        loop->inbox_first = message;
    }
    loop->inbox_last = message;
    const bool must_wake = !loop->is_awake;
    loop->is_awake = true;
    pthread_mutex_unlock(&loop->lock);
    if (must_wake) {
        const uint64_t one = 1;
        (void)!write(loop->wake_fd, &one, sizeof(one)); /* can only fail when it is readable */
    }
}

static void run_messages(struct loop *loop) {
    pthread_mutex_lock(&loop->lock);
    struct message *message = loop->inbox_first;
    loop->inbox_first = NULL;
    loop->inbox_last = NULL;
    pthread_mutex_unlock(&loop->lock);
    while (message != NULL) {
        struct message *const next = message->next;
        message->run(message);
        message = next;
    }
}

static void woken(struct loop *loop) {
    uint64_t count;
    (void)!read(loop->wake_fd, &count, sizeof(count)); /* only its being readable matters */
    pthread_mutex_lock(&loop->lock);
    loop->is_awake = false;
    pthread_mutex_unlock(&loop->lock);
    run_messages(loop);
}

/* --- life --- */

bool loop_open(struct loop *loop, struct mem *mem, bool is_manual) {
    memset(loop, 0, sizeof(*loop));
    loop->mem = mem;
    loop->is_manual = is_manual;
    loop->now_ns = is_manual ? MANUAL_START_NS : loop_clock_ns();
    loop->window_start_ns = loop_clock_ns();
    loop->wake_fd = -1;
    list_init(&loop->work);
    list_init(&loop->slow);
    list_init(&loop->flushes);
    pthread_mutex_init(&loop->lock, NULL);
    loop->batch = mem_alloc(mem, MEM_CORE, BATCH * sizeof(struct epoll_event));
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = loop};
    if (loop->batch == NULL || loop->epoll_fd < 0 || loop->wake_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) != 0) {
        loop_close(loop);
        return false;
    }
    return true;
}

void loop_close(struct loop *loop) {
    if (loop->epoll_fd >= 0) {
        close(loop->epoll_fd);
    }
    if (loop->wake_fd >= 0) {
        close(loop->wake_fd);
    }
    mem_free(loop->mem, MEM_CORE, loop->batch);
    mem_free(loop->mem, MEM_CORE, loop->timers);
    pthread_mutex_destroy(&loop->lock);
}

void loop_stop(struct loop *loop) {
    loop->is_stopping = true;
}

void loop_advance(struct loop *loop, uint64_t ns) {
    const uint64_t end = loop->now_ns + ns;
    timers_run(loop, end);
    loop->now_ns = end;
}

static int wait_time_ms(const struct loop *loop, int wait_ms) {
    if (!list_is_empty(&loop->work) || !list_is_empty(&loop->slow)) {
        return 0;
    }
    if (loop->is_manual || loop->n_timers == 0) {
        return wait_ms;
    }
    const uint64_t due = loop->timers[0]->due_ns;
    const uint64_t now = loop_clock_ns();
    if (due <= now) {
        return 0;
    }
    const uint64_t ms = (due - now + NS_PER_MS - 1) / NS_PER_MS;
    const uint64_t most = wait_ms < 0 ? 60000 : (uint64_t)wait_ms;
    return (int)(ms < most ? ms : most);
}

/* Keeps `busy_share`: how much of the last window was not spent waiting. */
static void account(struct loop *loop, uint64_t before, uint64_t after) {
    loop->window_idle_ns += after - before;
    const uint64_t length = after - loop->window_start_ns;
    if (length >= BUSY_WINDOW_NS) {
        const uint64_t idle = loop->window_idle_ns < length ? loop->window_idle_ns : length;
        atomic_store_explicit(&loop->busy_share, (uint32_t)((length - idle) * 1000 / length),
                              memory_order_relaxed);
        loop->window_start_ns = after;
        loop->window_idle_ns = 0;
    }
}

void loop_turn(struct loop *loop, int wait_ms) {
    struct epoll_event *const batch = loop->batch;
    const int timeout = wait_time_ms(loop, wait_ms);
    const uint64_t before = loop_clock_ns();
    const int n = epoll_wait(loop->epoll_fd, batch, BATCH, timeout);
    const uint64_t after = loop_clock_ns();
    account(loop, before, after);
    if (!loop->is_manual) {
        loop->now_ns = after;
    }
    loop->batch_len = n < 0 ? 0 : n;
    for (loop->batch_at = 0; loop->batch_at < loop->batch_len; loop->batch_at++) {
        const struct epoll_event event = batch[loop->batch_at];
        if (event.data.ptr == loop) {
            woken(loop);
        } else if (event.data.ptr != NULL) {
            struct watch *const watch = event.data.ptr;
            watch->ready(watch, event.events);
        }
    }
    loop->batch_len = 0;
    if (!loop->is_manual) {
        timers_run(loop, loop->now_ns);
    }
    finish_turn(loop);
}

void loop_run(struct loop *loop) {
    while (!loop->is_stopping) {
        loop_turn(loop, -1);
    }
    run_messages(loop);
    finish_turn(loop);
}
