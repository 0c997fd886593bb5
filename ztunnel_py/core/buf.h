/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers: a queue of bytes that wait, and flat blocks that a worker lends.
 *
 * A *queue* keeps what a reader does not take: right-sized chunks, small pieces joined, so that its
 * memory is in proportion to its bytes. An empty one holds nothing.
 * A *block* is flat memory of one size with a start and an end, lent from a worker's stock and
 * given back when empty, so that idle connections hold none. One thread each.
 */
#ifndef ZT_BUF_H
#define ZT_BUF_H

#include <sys/uio.h>

#include "mem.h"

struct chunk;

struct queue {
    struct chunk *first, *last;
    size_t len; /* bytes that wait */
};

/* Copies bytes to the end. False without memory: nothing was added. */
bool queue_add(struct mem *mem, struct queue *queue, const void *bytes, size_t len);

/* Up to `max` pieces from the front; returns how many. */
int queue_peek(const struct queue *queue, struct iovec *iov, int max);

/* Drops bytes from the front; `len` is at most what waits. */
void queue_drop(struct mem *mem, struct queue *queue, size_t len);

void queue_clear(struct mem *mem, struct queue *queue);

#define BLOCK_HEADROOM 64

/* Lendable flat memory. */
struct block {
    struct block *next;               /* in the stock */
    size_t size;                      /* bytes of `bytes` */
    size_t start, end;                /* what is in use */
    uint8_t headroom[BLOCK_HEADROOM]; /* whoever sends may write in front of `bytes` */
    uint8_t bytes[];
};

#define STOCK_KEPT 8 /* blocks that a stock keeps at hand */

/* A worker's stock of blocks of one size. */
struct stock {
    size_t block_size;
    struct block *free;
    size_t n_free;
};

/* An empty block, NULL without memory. */
struct block *stock_take(struct mem *mem, struct stock *stock);

/* Gives a block back; NULL is harmless. */
void stock_give(struct mem *mem, struct stock *stock, struct block *block);

void stock_clear(struct mem *mem, struct stock *stock);

#endif
