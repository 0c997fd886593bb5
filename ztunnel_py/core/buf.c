/* SPDX-License-Identifier: Apache-2.0 */
/* See buf.h. */
#include "buf.h"

#include "io.h"

#define CHUNK_MIN 2048
#define CHUNK_MAX (256 * 1024)

struct chunk {
    struct chunk *next;
    size_t size;                   /* bytes of `bytes` */
    size_t start, end;             /* what waits */
    uint8_t headroom[IO_HEADROOM]; /* whoever sends may write in front of `bytes` */
    uint8_t bytes[];
};

static struct chunk *chunk_create(struct mem *mem, size_t len) {
    size_t size = len < CHUNK_MIN ? CHUNK_MIN : len;
    size = size > CHUNK_MAX ? CHUNK_MAX : size;
    struct chunk *const chunk = mem_alloc(mem, MEM_BUFFER, sizeof(*chunk) + size);
    if (chunk != NULL) {
        chunk->size = size;
    }
    return chunk;
}

/* Chunks for `len` bytes, linked; NULL without memory. */
static struct chunk *chunks_create(struct mem *mem, size_t len) {
    struct chunk *first = NULL;
    struct chunk **end = &first;
    while (len > 0) {
        struct chunk *const chunk = chunk_create(mem, len);
        if (chunk == NULL) {
            while (first != NULL) {
                struct chunk *const next = first->next;
                mem_free(mem, MEM_BUFFER, first);
                first = next;
            }
            return NULL;
        }
        *end = chunk;
        end = &chunk->next;
        len -= len < chunk->size ? len : chunk->size;
    }
    return first;
}

bool queue_add(struct mem *mem, struct queue *queue, const void *bytes, size_t len) {
    const uint8_t *from = bytes;
    struct chunk *last = queue->last;
    const size_t room = last == NULL ? 0 : last->size - last->end;
    struct chunk *fresh = NULL;
    if (len > room) {
        fresh = chunks_create(mem, len - room);
        if (fresh == NULL) {
            return false;
        }
    }
    queue->len += len;
    if (room > 0) {
        const size_t n = len < room ? len : room;
        memcpy(last->bytes + last->end, from, n);
        last->end += n;
        from += n;
        len -= n;
    }
    while (fresh != NULL) {
        struct chunk *const next = fresh->next;
        const size_t n = len < fresh->size ? len : fresh->size;
        memcpy(fresh->bytes, from, n);
        fresh->end = n;
        from += n;
        len -= n;
        if (queue->last != NULL) {
            queue->last->next = fresh;
        } else {
            queue->first = fresh;
        }
        queue->last = fresh;
        fresh = next;
    }
    return true;
}

int queue_peek(const struct queue *queue, struct iovec *iov, int max) {
    int n = 0;
    for (struct chunk *chunk = queue->first; chunk != NULL && n < max; chunk = chunk->next) {
        iov[n].iov_base = chunk->bytes + chunk->start;
        iov[n].iov_len = chunk->end - chunk->start;
        n++;
    }
    return n;
}

void queue_drop(struct mem *mem, struct queue *queue, size_t len) {
    queue->len -= len;
    while (queue->first != NULL) {
        struct chunk *const chunk = queue->first;
        const size_t n = chunk->end - chunk->start;
        if (len < n) {
            chunk->start += len;
            return;
        }
        len -= n;
        queue->first = chunk->next;
        if (queue->first == NULL) {
            queue->last = NULL;
        }
        mem_free(mem, MEM_BUFFER, chunk);
    }
}

void queue_clear(struct mem *mem, struct queue *queue) {
    queue_drop(mem, queue, queue->len);
}

struct block *stock_take(struct mem *mem, struct stock *stock) {
    struct block *block = stock->free;
    if (block != NULL) {
        stock->free = block->next;
        stock->n_free--;
    } else {
        block = mem_alloc(mem, MEM_BUFFER, sizeof(*block) + stock->block_size);
        if (block == NULL) {
            return NULL;
        }
        block->size = stock->block_size;
    }
    block->next = NULL;
    block->start = 0;
    block->end = 0;
    return block;
}

void stock_give(struct mem *mem, struct stock *stock, struct block *block) {
    if (block == NULL) {
        return;
    }
    if (stock->n_free < STOCK_KEPT && block->size == stock->block_size) {
        block->next = stock->free;
        stock->free = block;
        stock->n_free++;
    } else {
        mem_free(mem, MEM_BUFFER, block);
    }
}

void stock_clear(struct mem *mem, struct stock *stock) {
    while (stock->free != NULL) {
        struct block *const block = stock->free;
        stock->free = block->next;
        mem_free(mem, MEM_BUFFER, block);
    }
    stock->n_free = 0;
}
