/* SPDX-License-Identifier: Apache-2.0 */
/* Rings of records: a list of chunks each; see record.h.
 *
 * The producer appends to the last chunk under the ring's lock. The consumer takes the whole list
 * at once under it and then reads at leisure, so that neither ever holds the lock for longer than a
 * few instructions, and a ring that was read holds no memory at all.
 */
#include "record.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CHUNK_RECORDS 32

struct chunk {
    struct chunk *next;
    size_t n; /* records written */
    struct record records[CHUNK_RECORDS];
};

struct ring {
    pthread_mutex_t lock; /* guards `first`, `last` and their chunks */
    struct chunk *first;  /* oldest; NULL: nothing was put since the last take */
    struct chunk *last;
    _Atomic uint32_t n_waiting; /* records that were put and not taken */
    struct chunk *taken;        /* the consumer's: read from `taken_at` on */
    size_t taken_at;
};

struct records {
    struct mem *mem;
    int fd;
    _Atomic bool is_signalled; /* the consumer was told and did not look since */
    size_t n_rings;
    size_t turn; /* ring that is read first next time, so that none starves another */
    struct ring rings[];
};

struct records *records_create(struct mem *mem, size_t n_rings) {
    const size_t size = sizeof(struct records) + n_rings * sizeof(struct ring);
    struct records *const records = mem_alloc(mem, MEM_CORE, size);
    if (records == NULL) {
        return NULL;
    }
    records->mem = mem;
    records->n_rings = n_rings;
    records->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (records->fd < 0) {
        mem_free(mem, MEM_CORE, records);
        return NULL;
    }
    for (size_t i = 0; i < n_rings; i++) {
        (void)pthread_mutex_init(&records->rings[i].lock, NULL); /* cannot fail: no attributes */
    }
    return records;
}

static void free_chunks(struct records *records, struct chunk *chunk, size_t from) {
    while (chunk != NULL) {
        struct chunk *const next = chunk->next;
        for (size_t i = from; i < chunk->n; i++) {
            record_release(records, &chunk->records[i]);
        }
        mem_free(records->mem, MEM_RECORD, chunk);
        chunk = next;
        from = 0;
    }
}

void records_destroy(struct records *records) {
    if (records == NULL) {
        return;
    }
    for (size_t i = 0; i < records->n_rings; i++) {
        struct ring *const ring = &records->rings[i];
        free_chunks(records, ring->taken, ring->taken_at);
        free_chunks(records, ring->first, 0);
        (void)pthread_mutex_destroy(&ring->lock); /* nobody holds it */
    }
    (void)close(records->fd); /* an eventfd has nothing to lose */
    mem_free(records->mem, MEM_CORE, records);
}

int records_fd(const struct records *records) {
    return records->fd;
}

/* --- the producer's side */

/* Makes the descriptor readable, unless it was and the consumer has not looked since. */
static void announce(struct records *records) {
    if (!atomic_load(&records->is_signalled) && !atomic_exchange(&records->is_signalled, true)) {
        const uint64_t one = 1;
        (void)!write(records->fd, &one, sizeof(one)); /* only a full counter fails: also readable */
    }
}

/* Appends, false without memory. */
static bool append(struct records *records, struct ring *ring, const struct record *record) {
    bool is_put = false;
    (void)pthread_mutex_lock(&ring->lock);
    if (ring->first == NULL || ring->last->n == CHUNK_RECORDS) {
        struct chunk *const chunk = mem_alloc(records->mem, MEM_RECORD, sizeof(*chunk));
        if (chunk == NULL) {
            goto out;
        }
        if (ring->first == NULL) {
            ring->first = chunk;
        } else {
            ring->last->next = chunk;
        }
        ring->last = chunk;
    }
    ring->last->records[ring->last->n++] = *record;
    is_put = true;
out:
    (void)pthread_mutex_unlock(&ring->lock);
    return is_put;
}

bool records_put(struct records *records, size_t ring_index, const struct record *record) {
    struct ring *const ring = &records->rings[ring_index];
    const bool has_room = atomic_load(&ring->n_waiting) < RECORD_RING;
    if (has_room) {
        /* Counted before it is there to be taken: the consumer's count never goes below zero. */
        atomic_fetch_add(&ring->n_waiting, 1);
        if (append(records, ring, record)) {
            announce(records);
            return true;
        }
        atomic_fetch_sub(&ring->n_waiting, 1);
    }
    struct record lost = *record;
    record_release(records, &lost);
    return false;
}

/* --- the consumer's side */

/* The consumer's oldest chunk with something to read; NULL if the ring is empty. */
static struct chunk *front(struct records *records, struct ring *ring) {
    if (ring->taken != NULL && ring->taken_at == ring->taken->n) {
        struct chunk *const next = ring->taken->next;
        mem_free(records->mem, MEM_RECORD, ring->taken);
        ring->taken = next;
        ring->taken_at = 0;
    }
    if (ring->taken == NULL) {
        (void)pthread_mutex_lock(&ring->lock);
        ring->taken = ring->first;
        ring->taken_at = 0;
        ring->first = NULL;
        ring->last = NULL;
        (void)pthread_mutex_unlock(&ring->lock);
    }
    return ring->taken;
}

static size_t take_from(struct records *records, struct ring *ring, struct record *to,
                        size_t limit) {
    size_t n = 0;
    while (n < limit) {
        struct chunk *const chunk = front(records, ring);
        if (chunk == NULL) {
            break;
        }
        const size_t there = chunk->n - ring->taken_at;
        const size_t some = there < limit - n ? there : limit - n;
        memcpy(&to[n], &chunk->records[ring->taken_at], some * sizeof(*to));
        ring->taken_at += some;
        n += some;
    }
    (void)front(records, ring); /* gives back a chunk that was read to its end */
    atomic_fetch_sub(&ring->n_waiting, (uint32_t)n);
    return n;
}

size_t records_take(struct records *records, struct record *to, size_t limit) {
    uint64_t count = 0;
    (void)!read(records->fd, &count, sizeof(count)); /* empty if called without being told */
    /* From here on producers announce again: what the look below misses, it will be told of. */
    atomic_store(&records->is_signalled, false);
    size_t n = 0;
    const size_t start = records->turn;
    for (size_t i = 0; i < records->n_rings && n < limit; i++) {
        const size_t at = (start + i) % records->n_rings;
        n += take_from(records, &records->rings[at], &to[n], limit - n);
        records->turn = (at + 1) % records->n_rings;
    }
    for (size_t i = 0; i < records->n_rings; i++) {
        if (atomic_load(&records->rings[i].n_waiting) > 0) {
            announce(records);
            break;
        }
    }
    return n;
}

void record_release(struct records *records, struct record *record) {
    verdict_unref(record->verdict);
    mem_free(records->mem, MEM_RECORD, record->detail);
    mem_free(records->mem, MEM_RECORD, record->authority);
    record->verdict = NULL;
    record->detail = NULL;
    record->authority = NULL;
}
