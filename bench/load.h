/* SPDX-License-Identifier: Apache-2.0 */
/* The load generators and what they share.
 *
 * Each generator runs for a given time or count against the sink and prints one line of JSON.
 * `load.c` chooses; `generate.c` has the ones that push as much as they can, `steady.c` the ones
 * that wait for answers or keep to a rate. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HISTOGRAM_FINE = 64, /* steps in each doubling: 1.6 % */
    HISTOGRAM_SIZE = HISTOGRAM_FINE * 40,
    MAX_BEGUN = 200000,  /* connections that a generator opens in all */
    MAX_FAILURES = 200,  /* of connections, before a generator gives up */
    GRACE_S = 10,       /* time for what is under way when a generator's own time is over */
};

/* Durations, in buckets whose width grows with them; the last takes all above 20 minutes. */
struct histogram {
    uint64_t counts[HISTOGRAM_SIZE];
    uint64_t n; /* sum of counts */
};

/* What a generator was asked to do. */
struct job {
    struct sockaddr_in to;
    size_t n_conns;  /* at once */
    uint64_t amount; /* nanoseconds */
    uint64_t rate;   /* requests a second, or ports in a row: see the generator */
};

/* A new epoll; dies if there is none to have. */
int load_epoll(void);

double load_seconds(uint64_t ns);

void histogram_add(struct histogram *histogram, uint64_t ns);

/* Prints `"p50_us": ..., "p99_us": ..., "p999_us": ...`; at least one value must be in. */
void histogram_print(const struct histogram *histogram);

/* Sends for `amount` ns on `n_conns` connections; until all arrived at a sink in mode discard. */
void load_bulk(const struct job *job);

/* Opens connections for `amount` ns, `n_conns` at once; a byte each way, the sink (once) closes. */
void load_connect(const struct job *job);

/* As load_connect, but each connection stays open to the end (echo). */
void load_hold(const struct job *job);

/* Opens connections for `amount` ns or MAX_BEGUN of them, `n_conns` at once, to `rate` ports in
 * turn (echo); a byte each way, then closes first. Prints also the rates of the first and of the
 * last 5,000. */
void load_short(const struct job *job);

/* Sends a byte and awaits it back, for `amount` ns on each of `n_conns` connections. */
void load_pingpong(const struct job *job);

/* Sends `rate` requests a second for `amount` ns over `n_conns` connections to a sink (http). */
void load_http(const struct job *job);

/* As load_http, but a byte there and back (echo). */
void load_pulse(const struct job *job);

/* Opens `n_conns` connections, a byte each way, and holds them until stdin closes. */
void load_idle(const struct job *job);

#endif
