/* SPDX-License-Identifier: Apache-2.0 */
/* See churn.h. */
#include "churn.h"

#include <stdio.h>

#include "sock.h"

#define WINDOW_NS (60 * NS_PER_S) /* TIME_WAIT */
#define PAIRS 4096
#define LOOK_NS NS_PER_S
#define PROBES 8
#define DEFAULT_PORTS 28232

struct churn_pair {
    struct addr client; /* without its port */
    struct addr app;
    uint32_t window; /* of `now` */
    uint32_t now, before;
    uint64_t looked_ns; /* when `is_local` was found out; 0: never */
    bool is_local;
};

static uint32_t port_count(void) {
    FILE *const file = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");
    unsigned low = 0;
    unsigned high = 0;
    const bool is_read = file != NULL && fscanf(file, "%u %u", &low, &high) == 2;
    if (file != NULL) {
        (void)fclose(file);
    }
    return is_read && high >= low ? high - low + 1 : DEFAULT_PORTS;
}

void churn_init(struct churn *churn, uint32_t n_workers, uint64_t now_ns) {
    memset(churn, 0, sizeof(*churn));
    churn->since_ns = now_ns;
    churn->window = 1;
    churn->threshold = port_count() / 4 / n_workers;
    churn->threshold = churn->threshold > 1 ? churn->threshold : 2;
}

void churn_clear(struct churn *churn, struct mem *mem) {
    mem_free(mem, MEM_CORE, churn->pairs);
    churn->pairs = NULL;
}

static void turn(struct churn *churn, uint64_t now_ns) {
    const uint64_t passed = (now_ns - churn->since_ns) / WINDOW_NS;
    if (passed > 0) {
        churn->since_ns += passed * WINDOW_NS;
        churn->window += (uint32_t)passed;
    }
}

static size_t start_of(const struct addr *client, const struct addr *app) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < sizeof(client->ip); i++) {
        hash = (hash ^ client->ip[i]) * UINT64_C(0x100000001b3);
        hash = (hash ^ app->ip[i]) * UINT64_C(0x100000001b3);
    }
    return (hash ^ (hash >> 32) ^ app->port) % PAIRS;
}

/* Brings a pair's counts to the current window. */
static void age(const struct churn *churn, struct churn_pair *pair) {
    if (pair->window != churn->window) {
        pair->before = pair->window + 1 == churn->window ? pair->now : 0;
        pair->now = 0;
        pair->window = churn->window;
    }
}

/* Asked anew every second: addresses come and go. */
static bool is_local(struct churn_pair *pair, int netns, uint64_t now_ns) {
    if (pair->looked_ns == 0 || now_ns - pair->looked_ns >= LOOK_NS) {
        pair->looked_ns = now_ns;
        pair->is_local = sock_is_local(netns, &pair->app);
    }
    return pair->is_local;
}

bool churn_uses_lo(struct churn *churn, struct mem *mem, int netns, const struct addr *client,
                   const struct addr *app, uint64_t now_ns) {
    if (client->family != 4) {
        return false;
    }
    turn(churn, now_ns);
    if (churn->pairs == NULL) {
        churn->pairs = mem_alloc(mem, MEM_CORE, PAIRS * sizeof(*churn->pairs));
        if (churn->pairs == NULL) {
            return false;
        }
    }
    const size_t start = start_of(client, app);
    struct churn_pair *place = NULL;
    for (size_t i = 0; i < PROBES; i++) {
        struct churn_pair *const pair = &churn->pairs[(start + i) % PAIRS];
        if (pair->window != 0 && addr_same_ip(&pair->client, client) &&
            addr_equal(&pair->app, app)) {
            age(churn, pair);
            pair->now++;
            return pair->now + pair->before >= churn->threshold && is_local(pair, netns, now_ns);
        }
        const bool is_stale = pair->window + 1 < churn->window || pair->window == 0;
        if (place == NULL && is_stale) {
            place = pair;
        }
    }
    if (place != NULL) { /* a full neighbourhood is not counted: it only costs ports */
        *place =
            (struct churn_pair){.client = *client, .app = *app, .window = churn->window, .now = 1};
    }
    return false;
}
