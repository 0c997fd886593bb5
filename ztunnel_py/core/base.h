/* SPDX-License-Identifier: Apache-2.0 */
/* Compiler helpers, byte order, intrusive lists: what every file of the core may use. */
#ifndef ZT_BASE_H
#define ZT_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ARRAY_LEN(array) (sizeof(array) / sizeof((array)[0]))
#define CONTAINER_OF(pointer, type, member) \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))
#define PRINTF_LIKE(format, first) __attribute__((format(printf, format, first)))

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

/* A piece of somebody else's bytes; not terminated. `bytes` may be NULL if `len` is 0. */
struct text {
    const char *bytes;
    size_t len;
};

static inline struct text text_of(const char *string) {
    return (struct text){string, strlen(string)};
}

static inline bool text_equal(struct text a, struct text b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.bytes, b.bytes, a.len) == 0);
}

/* A doubly linked ring; the head is a node of its own. Not thread-safe. */
struct list {
    struct list *next;
    struct list *prev;
};

static inline void list_init(struct list *node) {
    node->next = node;
    node->prev = node;
}

static inline bool list_is_empty(const struct list *node) {
    return node->next == node;
}

/* Appends `node`, which is in no list, at the end of `head`. */
static inline void list_push(struct list *head, struct list *node) {
    node->prev = head->prev;
    node->next = head;
    head->prev->next = node;
    head->prev = node;
}

/* Takes a node out of its list; harmless for one that is in none. */
static inline void list_remove(struct list *node) {
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

/* The first node, taken out; NULL if there is none. */
static inline struct list *list_pop(struct list *head) {
    if (list_is_empty(head)) {
        return NULL;
    }
    struct list *first = head->next;
    list_remove(first);
    return first;
}

/* Moves all of `from` to the end of `to`. */
static inline void list_splice(struct list *to, struct list *from) {
    if (list_is_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#endif
