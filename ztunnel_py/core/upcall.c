/* SPDX-License-Identifier: Apache-2.0 */
/* The queue of questions; see upcall.h. */
#include "upcall.h"

#include <sys/eventfd.h>
#include <unistd.h>

struct upcalls {
    struct mem *mem;
    int fd;
    pthread_mutex_t lock; /* guards all below, and the lists of questions in the shares */
    struct list turns;    /* shares that have questions, next first */
    bool is_rung;         /* the decider was told, or is about to be, and did not look since */
};

struct upcalls *upcalls_create(struct mem *mem) {
    struct upcalls *const upcalls = mem_alloc(mem, MEM_CORE, sizeof(*upcalls));
    if (upcalls == NULL) {
        return NULL;
    }
    upcalls->mem = mem;
    upcalls->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (upcalls->fd < 0) {
        mem_free(mem, MEM_CORE, upcalls);
        return NULL;
    }
    list_init(&upcalls->turns);
    (void)pthread_mutex_init(&upcalls->lock, NULL); /* cannot fail without attributes */
    return upcalls;
}

void upcalls_destroy(struct upcalls *upcalls) {
    if (upcalls == NULL) {
        return;
    }
    (void)pthread_mutex_destroy(&upcalls->lock); /* nobody holds it */
    (void)close(upcalls->fd);                    /* an eventfd has nothing to lose */
    mem_free(upcalls->mem, MEM_CORE, upcalls);
}

int upcalls_fd(const struct upcalls *upcalls) {
    return upcalls->fd;
}

/* --- the asking side */

bool upcalls_push(struct upcalls *upcalls, struct pending *pending) {
    struct flow_share *const share = pending->share;
    (void)pthread_mutex_lock(&upcalls->lock);
    list_push(&share->questions, &pending->queued);
    if (list_is_empty(&share->turn)) {
        list_push(&upcalls->turns, &share->turn);
    }
    const bool must_ring = !upcalls->is_rung;
    upcalls->is_rung = true;
    (void)pthread_mutex_unlock(&upcalls->lock);
    return must_ring;
}

void upcalls_ring(struct upcalls *upcalls) {
    const uint64_t one = 1;
    (void)!write(upcalls->fd, &one, sizeof(one)); /* only a full counter fails: also readable */
}

void upcalls_remove(struct upcalls *upcalls, struct pending *pending) {
    (void)pthread_mutex_lock(&upcalls->lock);
    list_remove(&pending->queued);
    if (list_is_empty(&pending->share->questions)) {
        list_remove(&pending->share->turn);
    }
    (void)pthread_mutex_unlock(&upcalls->lock);
}

void upcalls_unref(struct upcalls *upcalls, struct pending *pending) {
    if (atomic_fetch_sub_explicit(&pending->refs, 1, memory_order_acq_rel) == 1) {
        mem_free(upcalls->mem, MEM_QUESTION, pending);
    }
}

/* --- the decider's side */

/* The next workload's oldest question, taken out; the workload goes to the end of the line. */
static struct pending *pop_locked(struct upcalls *upcalls) {
    struct list *const turn = list_pop(&upcalls->turns);
    if (turn == NULL) {
        return NULL;
    }
    struct flow_share *const share = CONTAINER_OF(turn, struct flow_share, turn);
    struct list *const oldest = list_pop(&share->questions);
    if (!list_is_empty(&share->questions)) {
        list_push(&upcalls->turns, turn);
    }
    return CONTAINER_OF(oldest, struct pending, queued);
}

size_t upcalls_take(struct upcalls *upcalls, struct upcall *to, size_t limit) {
    uint64_t count = 0;
    size_t n = 0;
    (void)!read(upcalls->fd, &count, sizeof(count)); /* empty if called without being told */
    (void)pthread_mutex_lock(&upcalls->lock);
    while (n < limit) {
        struct pending *const pending = pop_locked(upcalls);
        if (pending == NULL) {
            break;
        }
        atomic_store(&pending->is_acknowledged, true);
        atomic_fetch_add_explicit(&pending->refs, 1, memory_order_relaxed);
        to[n++] = (struct upcall){
            .id = pending->id,
            .workload = pending->share->workload,
            .kind = pending->kind,
            .key = pending->key,
            .key_len = pending->key_len,
        };
    }
    /* What is pushed from here on rings again; what is left is rung for now. */
    const bool are_left = !list_is_empty(&upcalls->turns);
    upcalls->is_rung = are_left;
    (void)pthread_mutex_unlock(&upcalls->lock);
    if (are_left) {
        upcalls_ring(upcalls);
    }
    return n;
}

void upcall_free(struct upcalls *upcalls, struct upcall *upcall) {
    if (upcall->key != NULL) {
        upcalls_unref(upcalls, CONTAINER_OF(upcall->key, struct pending, key));
        upcall->key = NULL;
    }
}
