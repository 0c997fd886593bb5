/* SPDX-License-Identifier: Apache-2.0 */
/* The table of flows and questions; see flow.h.
 *
 * Order of this file: the table, questions (open, join, close), asking, stopping to wait,
 * answering. What is remembered of the answers is cache.c's.
 */
#include "flow.h"

#include <sys/random.h>

#include "cache.h"
#include "upcall.h"

#define SHARD_BITS 6
#define SHARDS (1U << SHARD_BITS)

struct flow_shard {
    struct flows *table;
    pthread_mutex_t lock; /* guards all below and the shares of its workloads */
    struct cache cache;   /* flows */
    struct map joinable;  /* of struct pending by key */
    struct map open;      /* of struct pending by id */
    uint64_t n_asked;     /* questions opened, of all time; makes ids */
};

struct flows {
    struct cache_rules rules;
    struct upcalls *upcalls;
    struct flow_shard shards[SHARDS];
};

/* Denials that need no memory, so that running out of it fails closed. They are never freed: the
 * first reference is nobody's. */
static struct verdict too_busy = {
    .refs = 1,
    .action = VERDICT_DENY,
    .reason = REASON_TOO_BUSY,
    .is_own = true,
    .uses = KEY_USES_ALL,
    .detail = {"questions", sizeof("questions") - 1},
};
static struct verdict decider_error = {
    .refs = 1,
    .action = VERDICT_DENY,
    .reason = REASON_DECIDER_ERROR,
    .is_own = true,
    .uses = KEY_USES_ALL,
};

/* --- the table */

void flow_share_init(struct flow_share *share, uint32_t workload) {
    share->workload = workload;
    list_init(&share->flows);
    list_init(&share->questions);
    list_init(&share->turn);
}

struct flows *flows_create(struct mem *mem, const struct flow_limits *limits,
                           struct upcalls *upcalls, struct stats *events) {
    struct flows *const flows = mem_alloc(mem, MEM_CORE, sizeof(*flows));
    if (flows == NULL) {
        return NULL;
    }
    struct cache_rules *const rules = &flows->rules;
    rules->mem = mem;
    rules->events = events;
    rules->limits = *limits;
    flows->upcalls = upcalls;
    if (getrandom(rules->seed, sizeof(rules->seed), 0) != (ssize_t)sizeof(rules->seed)) {
        mem_free(mem, MEM_CORE, flows);
        return NULL;
    }
    for (size_t i = 0; i < SHARDS; i++) {
        flows->shards[i].table = flows;
        flows->shards[i].cache.rules = rules;
        (void)pthread_mutex_init(&flows->shards[i].lock, NULL); /* cannot fail: no attributes */
    }
    return flows;
}

void flows_destroy(struct flows *flows) {
    if (flows == NULL) {
        return;
    }
    for (size_t i = 0; i < SHARDS; i++) {
        struct flow_shard *const shard = &flows->shards[i];
        cache_clear(&shard->cache);
        (void)pthread_mutex_destroy(&shard->lock); /* nobody holds it */
    }
    mem_free(flows->rules.mem, MEM_CORE, flows);
}

static struct flow_shard *shard_of(struct flows *flows, const struct flow_share *share) {
    return &flows->shards[share->workload % SHARDS];
}

static void shard_lock(struct flow_shard *shard) {
    (void)pthread_mutex_lock(&shard->lock); /* fails only if it was never made */
}

static void shard_unlock(struct flow_shard *shard) {
    (void)pthread_mutex_unlock(&shard->lock);
}

static void count(struct flow_shard *shard, enum stats_event event) {
    stats_count_shared(shard->table->rules.events, event);
}

struct epoch flow_epoch(struct flows *flows) {
    return (struct epoch){atomic_load(&flows->rules.discovery), atomic_load(&flows->rules.policy)};
}

void flow_epoch_bump(struct flows *flows, bool discovery, bool policy) {
    atomic_fetch_add(&flows->rules.discovery, discovery ? 1 : 0);
    atomic_fetch_add(&flows->rules.policy, policy ? 1 : 0);
}

bool flow_is_stale(struct flows *flows, const struct verdict *verdict) {
    return cache_is_stale(&flows->rules, verdict);
}

void flow_forget(struct flows *flows, struct flow_share *share) {
    struct flow_shard *const shard = shard_of(flows, share);
    shard_lock(shard);
    cache_forget(&shard->cache, share);
    shard_unlock(shard);
}

/* --- questions; all under the shard's lock */

static struct pending *question_to_join(const struct flow_shard *shard,
                                        const struct cache_key *wanted) {
    struct map_node *node = map_first(&shard->joinable, wanted->hash);
    for (; node != NULL; node = map_next(node)) {
        struct pending *const pending = CONTAINER_OF(node, struct pending, by_key);
        if (pending->share == wanted->share && pending->kind == wanted->kind &&
            pending->key_len == wanted->len &&
            (wanted->len == 0 || memcmp(pending->key, wanted->bytes, wanted->len) == 0)) {
            return pending;
        }
    }
    return NULL;
}

/* A new question, not yet queued. NULL if the share is full or memory is short. */
static struct pending *question_open(struct flow_shard *shard, const struct cache_key *wanted,
                                     bool is_joinable) {
    struct flows *const flows = shard->table;
    struct flow_share *const share = wanted->share;
    if (atomic_load(&share->n_questions) >= flows->rules.limits.questions_per_workload) {
        return NULL;
    }
    struct pending *const pending =
        mem_alloc(flows->rules.mem, MEM_QUESTION, sizeof(*pending) + wanted->len);
    if (pending == NULL) {
        return NULL;
    }
    list_init(&pending->queued);
    list_init(&pending->waiters);
    pending->share = share;
    pending->id = ++shard->n_asked << SHARD_BITS | (uint64_t)(shard - flows->shards);
    pending->kind = wanted->kind;
    pending->is_joinable = is_joinable;
    atomic_init(&pending->refs, 1);
    pending->key_len = wanted->len;
    if (wanted->len > 0) {
        memcpy(pending->key, wanted->bytes, wanted->len);
    }
    map_insert(&shard->open, flows->rules.mem, &pending->by_id, pending->id >> SHARD_BITS);
    if (is_joinable) {
        map_insert(&shard->joinable, flows->rules.mem, &pending->by_key, wanted->hash);
    }
    atomic_fetch_add(&share->n_questions, 1);
    return pending;
}

/* Nobody waits for it any more, or it is answered. It may still be referred to by the decider. */
static void question_close(struct flow_shard *shard, struct pending *pending) {
    struct flows *const flows = shard->table;
    map_remove(&shard->open, flows->rules.mem, &pending->by_id);
    if (pending->is_joinable) {
        map_remove(&shard->joinable, flows->rules.mem, &pending->by_key);
    }
    upcalls_remove(flows->upcalls, pending);
    atomic_fetch_sub(&pending->share->n_questions, 1);
}

static struct pending *question_with_id(const struct flow_shard *shard, uint64_t id) {
    struct map_node *const node = map_first(&shard->open, id >> SHARD_BITS);
    return node == NULL ? NULL : CONTAINER_OF(node, struct pending, by_id);
}

/* Runs on the loop's thread; the waiter may be gone when it returns. */
static void deliver(struct message *message) {
    struct flow_waiter *const waiter = CONTAINER_OF(message, struct flow_waiter, message);
    struct verdict *verdict = waiter->verdict;
    waiter->verdict = NULL;
    waiter->shard = NULL;
    if (waiter->is_cancelled) {
        verdict_unref(verdict);
        verdict = NULL;
    }
    waiter->answered(waiter, verdict);
}

static void wait_for(struct pending *pending, struct flow_waiter *waiter) {
    waiter->pending = pending;
    list_push(&pending->waiters, &waiter->link);
    pending->n_waiters++;
}

static struct verdict *refusal(struct flow_shard *shard) {
    count(shard, EVENT_questions_refused);
    return verdict_ref(&too_busy);
}

/* --- asking */

/* Makes the waiter wait, for a question that is there or for a new one. False if it cannot. */
static bool join_or_open(struct flow_shard *shard, const struct cache_key *wanted,
                         struct flow_waiter *waiter, bool *must_ring) {
    const struct flow_limits *const limits = &shard->table->rules.limits;
    const bool is_joinable = limits->flows_per_workload > 0 || wanted->kind == KEY_IDENTITY;
    struct pending *pending = is_joinable ? question_to_join(shard, wanted) : NULL;
    if (pending != NULL) {
        if (pending->n_waiters >= limits->waiters_per_question) {
            return false;
        }
        count(shard, EVENT_flow_joined);
    } else {
        pending = question_open(shard, wanted, is_joinable);
        if (pending == NULL) {
            return false;
        }
        *must_ring = upcalls_push(shard->table->upcalls, pending);
    }
    wait_for(pending, waiter);
    return true;
}

struct verdict *flow_ask(struct flows *flows, struct flow_share *share, enum key_kind kind,
                         const uint8_t *key, size_t key_len, uint64_t now_ns,
                         struct flow_waiter *waiter) {
    struct flow_shard *const shard = shard_of(flows, share);
    const struct cache_key wanted = cache_key_of(&flows->rules, share, kind, key, key_len);
    struct verdict *verdict = NULL;
    bool must_ring = false;
    waiter->is_cancelled = false;
    waiter->shard = shard;
    waiter->message.run = deliver;
    shard_lock(shard);
    if (flows->rules.limits.flows_per_workload > 0 && kind != KEY_IDENTITY) {
        verdict = cache_find(&shard->cache, &wanted, now_ns);
    }
    if (verdict == NULL && !join_or_open(shard, &wanted, waiter, &must_ring)) {
        verdict = refusal(shard);
    }
    shard_unlock(shard);
    if (must_ring) {
        upcalls_ring(flows->upcalls);
    }
    if (verdict != NULL) {
        waiter->shard = NULL;
    }
    return verdict;
}

bool flow_is_acknowledged(struct flow_waiter *waiter) {
    struct flow_shard *const shard = waiter->shard;
    if (shard == NULL) {
        return true;
    }
    shard_lock(shard);
    const struct pending *const pending = waiter->pending;
    const bool is_acknowledged = pending == NULL || atomic_load(&pending->is_acknowledged);
    shard_unlock(shard);
    return is_acknowledged;
}

/* --- stopping to wait */

bool flow_cancel(struct flow_waiter *waiter) {
    struct flow_shard *const shard = waiter->shard;
    if (shard == NULL) {
        return true;
    }
    shard_lock(shard);
    struct pending *const pending = waiter->pending;
    bool is_last = false;
    if (pending != NULL) {
        list_remove(&waiter->link);
        waiter->pending = NULL;
        is_last = --pending->n_waiters == 0;
        if (is_last) {
            question_close(shard, pending);
        }
    }
    shard_unlock(shard);
    if (pending == NULL) {
        waiter->is_cancelled = true;
        return false;
    }
    if (is_last) {
        upcalls_unref(shard->table->upcalls, pending);
    }
    waiter->shard = NULL;
    return true;
}

/* --- answering */

/* Hands a waiter its verdict, whose reference is taken: it is posted once the lock is gone. */
static void answer(struct flow_waiter *waiter, struct verdict *verdict, struct list *answered) {
    waiter->pending = NULL;
    waiter->verdict = verdict;
    list_push(answered, &waiter->link);
}

static struct flow_waiter *next_waiter(struct pending *pending) {
    struct list *const link = list_pop(&pending->waiters);
    if (link == NULL) {
        return NULL;
    }
    pending->n_waiters--;
    return CONTAINER_OF(link, struct flow_waiter, link);
}

/* Without its hash: neither opening a question nor keeping a flow by its masked key needs it. */
static struct cache_key key_of(const struct pending *pending) {
    return (struct cache_key){pending->share, pending->kind, pending->key, pending->key_len, 0};
}

/* The verdict is for one connection: each of the others that waited gets a question of its own, or
 * a refusal if there is no room for it. True if the decider has to be told. */
static bool split(struct flow_shard *shard, struct pending *pending, struct list *answered) {
    const struct cache_key wanted = key_of(pending);
    struct flow_waiter *waiter = NULL;
    bool must_ring = false;
    while ((waiter = next_waiter(pending)) != NULL) {
        struct pending *const own = question_open(shard, &wanted, false);
        if (own == NULL) {
            answer(waiter, refusal(shard), answered);
            continue;
        }
        atomic_store(&own->is_acknowledged, atomic_load(&pending->is_acknowledged));
        wait_for(own, waiter);
        must_ring |= upcalls_push(shard->table->upcalls, own);
    }
    return must_ring;
}

/* Answers whoever may use this verdict. True if the decider has to be told of new questions. */
static bool hand_out(struct flow_shard *shard, struct pending *pending, struct verdict *verdict,
                     uint64_t now_ns, struct list *answered) {
    const bool is_stale = cache_is_stale(&shard->table->rules, verdict);
    bool is_for_one = false;
    if (is_stale) {
        /* All get it, see that it is stale and ask again, together. */
        count(shard, EVENT_flow_stale_reply);
    } else if (!verdict->is_own && pending->kind != KEY_IDENTITY) {
        is_for_one = verdict->ttl_ns == 0;
        if (!is_for_one && shard->table->rules.limits.flows_per_workload > 0) {
            const struct cache_key wanted = key_of(pending);
            cache_install(&shard->cache, &wanted, verdict, now_ns);
        }
    }
    struct flow_waiter *waiter = NULL;
    while ((waiter = next_waiter(pending)) != NULL) {
        answer(waiter, verdict_ref(verdict), answered);
        if (is_for_one) {
            return split(shard, pending, answered);
        }
    }
    return false;
}

bool flow_reply(struct flows *flows, uint64_t question, struct verdict *verdict, uint64_t now_ns) {
    struct flow_shard *const shard = &flows->shards[question % SHARDS];
    struct list answered;
    bool must_ring = false;
    list_init(&answered);
    if (verdict == NULL) {
        verdict = verdict_ref(&decider_error);
    }
    shard_lock(shard);
    struct pending *const pending = question_with_id(shard, question);
    if (pending != NULL) {
        question_close(shard, pending);
        must_ring = hand_out(shard, pending, verdict, now_ns, &answered);
    }
    shard_unlock(shard);
    verdict_unref(verdict);
    if (must_ring) {
        upcalls_ring(flows->upcalls);
    }
    /* Taken out of the list before it is posted: from then on the waiter is its loop's. */
    struct list *link = NULL;
    while ((link = list_pop(&answered)) != NULL) {
        struct flow_waiter *const waiter = CONTAINER_OF(link, struct flow_waiter, link);
        loop_post(waiter->loop, &waiter->message);
    }
    if (pending != NULL) {
        upcalls_unref(flows->upcalls, pending);
    }
    return pending != NULL;
}
