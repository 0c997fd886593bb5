/* SPDX-License-Identifier: Apache-2.0 */
/* Flows: verdicts by key, those that are asked for, and who waits for them.
 *
 * Rules of this file (the eight rules of the cache, architecture.md, as far as C enforces them):
 *  - No verdict, no bytes: a time-out, a full share and a malformed reply are denials.
 *  - A flow whose verdict is of another epoch, or older than its ttl, is a miss. A waiter looks at
 *    the epoch again when it wakes and asks anew if it moved (`flow_is_stale`).
 *  - Misses of one key at the same time are one question (unless the cache is off, or the verdict
 *    turns out to be for one connection only: then each of the others asks for itself).
 *  - Flows and questions are bounded per workload. A full share of questions denies that workload
 *    only; a full share of flows throws out the workload's least recently used one.
 *  - Whoever waits for a certificate (KEY_IDENTITY) waits for the same answer, cache or not: it
 *    goes to all of them and is never kept.
 *
 * Shared by all threads: 64 shards, a mutex each. All flows and questions of a workload are in one
 * shard, so that looking up, joining, asking and throwing out are one critical section and bounds
 * are exact. The lock order is shard, then queue, then the released verdicts.
 *
 * A waiter is embedded in the connection that waits. `flow_ask` returns at once with a verdict, or
 * the waiter's `answered` runs later on its loop's thread with one. `flow_cancel` returns true if
 * `answered` will never run; false if an answer is under way, which then arrives as
 * `answered(waiter, NULL)` and the connection's memory must live until then. A waiter that was
 * answered or cancelled may ask again.
 */
#ifndef ZT_FLOW_H
#define ZT_FLOW_H

#include "key.h"
#include "loop.h"
#include "verdict.h"

#define FLOW_MASKS 8      /* values of `uses` */
#define FLOW_KEY_MAX 4096 /* larger keys are never cached: clients may not fill the memory */

/* A workload's share; embedded in it. Its shard's lock guards it but for the queue's part. */
struct flow_share {
    uint32_t workload; /* its id */
    _Atomic uint32_t n_flows;
    _Atomic uint32_t n_questions;                  /* open questions */
    _Atomic uint32_t masks[KEY_KINDS][FLOW_MASKS]; /* flows by kind and mask */
    struct list flows;                             /* least recently used first */
    /* Guarded by the queue's lock (upcall.c): */
    struct list questions; /* not yet taken by the decider, oldest first */
    struct list turn;      /* place in the round robin; in none if there are no questions */
};

struct pending;
struct flow_shard;

struct flow_waiter {
    struct list link;         /* among the waiters of `pending` */
    struct flow_shard *shard; /* of what it waits for, NULL: it does not wait; its own thread's */
    struct pending *pending;  /* the question, NULL: answered; guarded by the shard's lock */
    struct loop *loop;        /* where `answered` runs */
    struct message message;
    struct verdict *verdict; /* on its way */
    bool is_cancelled;       /* nobody wants the answer that is on its way; its own thread's */
    void (*answered)(struct flow_waiter *waiter, struct verdict *verdict); /* takes the reference */
};

struct flow_limits {
    uint32_t flows_per_workload;     /* 0: no cache, every connection asks */
    uint32_t questions_per_workload; /* open at a time */
    uint32_t waiters_per_question;
    uint64_t idle_ns; /* a flow that was not used for so long is dropped when met */
};

struct flows;

struct upcalls;
struct stats;

/* Prepares a zeroed share. It outlives its waiters, and its flows: `flow_forget` after the last
 * waiter was answered or cancelled leaves none. */
void flow_share_init(struct flow_share *share, uint32_t workload);

/* NULL without memory or random numbers. Denials that the table makes by itself are static. */
struct flows *flows_create(struct mem *mem, const struct flow_limits *limits,
                           struct upcalls *upcalls, struct stats *events);

/* Frees the table and its flows; NULL is harmless. All waiters must have been cancelled or answered
 * before, shares may be gone. */
void flows_destroy(struct flows *flows);

/* The verdict for a key. Returns one with a reference at once (a hit, or a denial with TOO_BUSY if
 * a bound is reached or memory is short), or NULL: `waiter->answered` follows.
 *
 * `waiter` does not wait, its `loop` and `answered` are set, all else was zero when it was made.
 * Runs on its loop's thread. `share` outlives the waiter. */
struct verdict *flow_ask(struct flows *flows, struct flow_share *share, enum key_kind kind,
                         const uint8_t *key, size_t key_len, uint64_t now_ns,
                         struct flow_waiter *waiter);

/* The decider took the question of this waiter, or the waiter has none. Once acknowledged it stays
 * so when the question is split. Loop thread. */
bool flow_is_acknowledged(struct flow_waiter *waiter);

/* Stops waiting, see above. The question stays open if others wait; else it is closed and an
 * answer to it is ignored. Loop thread. */
bool flow_cancel(struct flow_waiter *waiter);

/* The verdict is of an older epoch than now. Those made by the core are never stale. */
bool flow_is_stale(struct flows *flows, const struct verdict *verdict);

/* Answers a question: installs the verdict if it may be reused, wakes who waits. Takes the
 * reference; NULL is a denial with DECIDER_ERROR. False if the question is not open any more (the
 * verdict is dropped). */
bool flow_reply(struct flows *flows, uint64_t question, struct verdict *verdict, uint64_t now_ns);

/* Drops a workload's flows; its open questions stay. Any thread. */
void flow_forget(struct flows *flows, struct flow_share *share);

/* Epochs begin at zero. A bump is seen by every lookup that begins after it, on any thread; only
 * one thread bumps. */
struct epoch flow_epoch(struct flows *flows);
void flow_epoch_bump(struct flows *flows, bool discovery, bool policy);

#endif
