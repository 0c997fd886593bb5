/* SPDX-License-Identifier: Apache-2.0 */
/* One worker's event loop: descriptors, timers, messages from other threads, deferred work.
 *
 * Every object has one owner thread, that of its loop. Another thread reaches it with a message
 * only. Events of one batch may name an object that was closed earlier in the batch: closing
 * unregisters, which drops its events of this batch, and memory is given back through
 * `loop_free_later`, after the turn.
 *
 * A turn: events, messages, timers, then work that was deferred, then what was put off to the very
 * end (writes gather there), then the graves. Descriptors are edge-triggered but for listeners:
 * nothing is re-registered when a reader pauses, and whoever stops before EAGAIN defers the rest.
 *
 * Time is `loop->now_ns`, read once per turn. With a manual clock it stands still until
 * `loop_advance` moves it, so that tests own it.
 */
#ifndef ZT_LOOP_H
#define ZT_LOOP_H

#include <pthread.h>

#include "mem.h"

/* A message runs once on the loop's thread. It is embedded in what it is about, and may be posted
 * again once it runs. */
struct message {
    struct message *next;
    void (*run)(struct message *message);
};

/* A watched descriptor. `ready` gets the epoll events. */
struct watch {
    void (*ready)(struct watch *watch, uint32_t events);
    int fd; /* -1: not watched */
};

/* A timer; at most one deadline at a time. */
struct timer {
    void (*expired)(struct timer *timer);
    uint64_t due_ns;
    size_t place; /* in the heap, plus one; 0: not armed */
};

/* Work for the end of this turn; it waits at most once. Deferred work that is put off while such
 * work runs is done in the next turn. */
struct deferred {
    struct list link;
    void (*run)(struct deferred *deferred);
};

/* Memory to be given back after the turn. Embedded in what it frees. */
struct grave {
    struct grave *next;
    enum mem_kind kind;
    void *pointer;
};

struct loop {
    struct mem *mem;
    uint64_t now_ns; /* time of this turn */
    int epoll_fd;
    int wake_fd;
    bool is_manual; /* time is moved by `loop_advance` */
    bool is_stopping;
    struct timer **timers; /* a binary heap, earliest first */
    size_t n_timers;
    size_t timers_size;
    struct list work;    /* of struct deferred, done once per turn */
    struct list slow;    /* of struct deferred, of which a few are done per turn */
    struct list flushes; /* of struct deferred, done last */
    struct grave *graves;
    void *batch; /* epoll events being dispatched */
    int batch_at, batch_len;
    pthread_mutex_t lock; /* guards the three members below */
    struct message *inbox_first, *inbox_last;
    bool is_awake;               /* `wake_fd` was written and not yet read */
    _Atomic uint32_t busy_share; /* of the last window, in thousandths */
    uint64_t window_start_ns, window_idle_ns;
};

/* Prepares a loop. False without descriptors or memory. */
bool loop_open(struct loop *loop, struct mem *mem, bool is_manual);

/* Runs until `loop_stop`. The thread that calls it owns the loop. */
void loop_run(struct loop *loop);

/* One turn; waits for events for at most `wait_ms` (-1: as long as no timer is due). */
void loop_turn(struct loop *loop, int wait_ms);

/* Ends `loop_run` after this turn. Loop thread. */
void loop_stop(struct loop *loop);

/* Gives back what `loop_open` took. */
void loop_close(struct loop *loop);

/* Sends a message. Any thread. */
void loop_post(struct loop *loop, struct message *message);

/* Registers `fd` for reading and writing, edge-triggered. False if the kernel refuses. */
bool loop_watch(struct loop *loop, struct watch *watch, int fd);

/* Registers a listening socket, level-triggered; one of the loops that share it wakes. */
bool loop_watch_listener(struct loop *loop, struct watch *watch, int fd);

/* Unregisters; its events of this batch are dropped. Does not close the descriptor. */
void loop_unwatch(struct loop *loop, struct watch *watch);

/* The same for a descriptor that is closed at once: the kernel unregisters it by itself, as nothing
 * else refers to it (descriptors are never duplicated, and not inherited). Closes it. */
void loop_close_fd(struct loop *loop, struct watch *watch);

/* (Re)arms a timer, `after_ns` from now. False without memory. */
bool loop_arm(struct loop *loop, struct timer *timer, uint64_t after_ns);
void loop_disarm(struct loop *loop, struct timer *timer);

void deferred_init(struct deferred *deferred, void (*run)(struct deferred *deferred));

/* Runs it at the end of this turn, nothing if it already waits; `loop_defer_flush`: at its very
 * end, after all work; `loop_defer_slow`: in this turn or, if many wait, in a later one. */
void loop_defer(struct loop *loop, struct deferred *deferred);
void loop_defer_slow(struct loop *loop, struct deferred *deferred);
void loop_defer_flush(struct loop *loop, struct deferred *deferred);

/* Frees `pointer`, which contains `grave`, after this turn. */
void loop_bury(struct loop *loop, struct grave *grave, enum mem_kind kind, void *pointer);

/* Manual clock: moves time, running timers as they become due, in order. Loop thread. */
void loop_advance(struct loop *loop, uint64_t ns);

/* The monotonic clock, whatever the loop's. Any thread. */
uint64_t loop_clock_ns(void);

#endif
