/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of the whole core stand on: one core with a client's and a server's workload on
 * loopback, an application, users, and a decider, which is the test's own thread.
 *
 * A user's connection is outbound at the client's workload, an HBONE stream to the server's, and
 * from there a connection to the application.
 */
#ifndef ZT_CORE_STAGE_H
#define ZT_CORE_STAGE_H

#include <dirent.h>

#include "certificates.h"
#include "core.h"
#include "core_state.h"
#include "crowd.h"
#include "echo.h"
#include "fake_decider.h"
#include "tls.h"

#define CLIENT_ID "spiffe://td/ns/a/sa/client"
#define SERVER_ID "spiffe://td/ns/b/sa/server"
#define CLIENT 1
#define SERVER 2
#define PATIENCE_NS (10 * NS_PER_S)

enum stage_rule { RULE_OUTBOUND, RULE_INBOUND, RULE_PASSTHROUGH, RULE_IDENTITY, RULES };

static struct core *core;
static struct echo echo;
static struct crowd crowd;
static struct certified root, client_leaf, server_leaf;
static struct fake_decider decider;
static struct fake_rule rules[RULES];
static struct sockaddr_in outbound, passthrough; /* where users connect */
static char authority[32];
static int n_descriptors;
static uint64_t n_ended[REASONS]; /* records of ends, by reason */
static uint64_t n_opened;
static uint64_t n_tags;
static uint64_t n_up, n_down; /* bytes, in records of ends */

static struct core_config STAGE_CONFIG = {
    .n_workers = 3,
    .stream_window = 4 << 20,
    .connection_window = 16 << 20,
    .frame_size = 1 << 20,
    .max_streams_served = 200,
    .pool_max_streams = 100,
    .pool_idle_ns = 300 * NS_PER_S,
    .ping_interval_ns = 10 * NS_PER_S,
    .ping_timeout_ns = 20 * NS_PER_S,
    .connect_timeout_ns = 10 * NS_PER_S,
    .handshake_timeout_ns = 10 * NS_PER_S,
    .decision_timeout_ns = 30 * NS_PER_S,
    .acknowledge_timeout_ns = 5 * NS_PER_S,
    .handshakes_at_once = 1000,
    .buffer_budget = 64 << 20,
    .flows_per_workload = 1000,
    .questions_per_workload = 1000,
    .flow_idle_ns = 600 * NS_PER_S,
    .report_opened = true,
};

static inline int count_descriptors(void) {
    DIR *const folder = opendir("/proc/self/fd");
    int n = 0;
    CHECK(folder != NULL);
    while (readdir(folder) != NULL) {
        n++;
    }
    closedir(folder);
    return n;
}

static inline struct addr stage_addr(const struct sockaddr_in *at) {
    return addr_from_sockaddr((const struct sockaddr *)at);
}

static inline struct sockaddr_in stage_sockaddr(const struct addr *at) {
    struct sockaddr_storage name;
    struct sockaddr_in to;
    (void)addr_to_sockaddr(at, false, &name);
    memcpy(&to, &name, sizeof(to));
    return to;
}

/* Binds the listeners of both workloads; false without memory. */
static inline bool stage_listen(void) {
    struct core_listen ours[] = {{.role = CORE_OUTBOUND}};
    struct core_listen theirs[] = {{.role = CORE_INBOUND}, {.role = CORE_PASSTHROUGH}};
    const struct addr any = {.ip = {127, 0, 0, 1}, .family = 4};
    size_t failed = 0;
    ours[0].at = any;
    theirs[0].at = any;
    theirs[1].at = any;
    const bool is_bound =
        core_workload_add(core, CLIENT, -1, ours, ARRAY_LEN(ours), &failed) == 0 &&
        core_workload_add(core, SERVER, -1, theirs, ARRAY_LEN(theirs), &failed) == 0;
    if (is_bound) {
        outbound = stage_sockaddr(&ours[0].bound);
        passthrough = stage_sockaddr(&theirs[1].bound);
        rules[RULE_OUTBOUND].verdict.hops[0].address = theirs[0].bound;
        core_workload_serve(core, CLIENT);
        core_workload_serve(core, SERVER);
    }
    return is_bound;
}

static inline bool stage_identify(uint32_t workload, const struct certified *leaf) {
    const struct text chain = certificate_pem(leaf);
    const struct text key = certificate_key_pem(leaf);
    const struct text roots = certificate_pem(&root);
    char error[IDENT_ERROR_SIZE];
    const bool is_set = core_identity_set(core, workload, chain, key, roots, error, sizeof(error));
    certificate_text_free(chain);
    certificate_text_free(key);
    certificate_text_free(roots);
    return is_set;
}

/* Everything around the core. */
static inline void stage_prepare(void) {
    n_descriptors = count_descriptors();
    CHECK(tls_init());
    root = certify(NULL, &(struct certificate_traits){0});
    client_leaf = certify_id(&root, CLIENT_ID);
    server_leaf = certify_id(&root, SERVER_ID);
    echo_start(&echo);
    (void)snprintf(authority, sizeof(authority), "127.0.0.1:%u", ntohs(echo.address.sin_port));
    rules[RULE_OUTBOUND] =
        (struct fake_rule){.kind = KEY_OUTBOUND, .verdict = fake_forward(60000, KEY_USES_ALL)};
    rules[RULE_OUTBOUND].verdict.hops[0] = (struct fake_hop){.protocol = HOP_HBONE,
                                                             .weight = 1,
                                                             .slot = 1,
                                                             .authority = authority,
                                                             .sans = {SERVER_ID},
                                                             .n_sans = 1};
    rules[RULE_INBOUND] =
        (struct fake_rule){.kind = KEY_INBOUND, .verdict = fake_forward(60000, KEY_USES_ALL)};
    rules[RULE_INBOUND].verdict.hops[0].address = stage_addr(&echo.address);
    rules[RULE_INBOUND].verdict.hops[0].slot = 2;
    rules[RULE_PASSTHROUGH] = rules[RULE_INBOUND];
    rules[RULE_PASSTHROUGH].kind = KEY_PASSTHROUGH;
    rules[RULE_IDENTITY] =
        (struct fake_rule){.kind = KEY_IDENTITY, .verdict = {.action = VERDICT_FORWARD}};
}

/* A core without workloads; false without memory. */
static inline bool stage_start(const struct core_config *config) {
    memset(n_ended, 0, sizeof(n_ended));
    core = core_start(config);
    if (core == NULL) {
        return false;
    }
    decider = (struct fake_decider){.mem = &core->mem,
                                    .released = &core->released,
                                    .flows = core->flows,
                                    .upcalls = core->upcalls,
                                    .rules = rules,
                                    .n_rules = RULES};
    return true;
}

static inline void set_up_with(const struct core_config *config) {
    stage_prepare();
    CHECK(stage_start(config) && stage_listen());
    CHECK(stage_identify(CLIENT, &client_leaf) && stage_identify(SERVER, &server_leaf));
}

static inline void set_up(void) {
    set_up_with(&STAGE_CONFIG);
}

static inline void stage_take_records(void) {
    struct record records[64];
    size_t n;
    while ((n = core_recv_records(core, records, ARRAY_LEN(records))) > 0) {
        for (size_t i = 0; i < n; i++) {
            CHECK(records[i].reason < REASONS);
            n_opened += records[i].kind == RECORD_OPENED;
            n_ended[records[i].reason] += records[i].kind != RECORD_OPENED;
            if (records[i].kind == RECORD_CLOSED) {
                n_up += records[i].upstream_bytes;
                n_down += records[i].downstream_bytes;
            }
            core_record_release(core, &records[i]);
        }
    }
}

static inline void stage_take_released(void) {
    uint64_t tags[64];
    size_t n;
    while ((n = core_recv_released(core, tags, ARRAY_LEN(tags))) > 0) {
        n_tags += n;
    }
}

/* The decider decides, users talk. */
static inline void turn(int wait_ms) {
    const int fds[] = {core_question_fd(core), core_record_fd(core)};
    crowd_turn(&crowd, wait_ms, fds, ARRAY_LEN(fds));
    decider.now_ns = core->config.has_manual_time ? 1000 * NS_PER_S : loop_clock_ns();
    (void)fake_decider_turn(&decider);
    stage_take_records();
    stage_take_released();
}

/* Turns until something is so; fails after a while. */
#define TURN_UNTIL(claim)                                          \
    do {                                                           \
        const uint64_t until = loop_clock_ns() + PATIENCE_NS;      \
        while (!(claim)) {                                         \
            if (loop_clock_ns() > until) {                         \
                CHECK_FAIL("is not so after a while: %s", #claim); \
            }                                                      \
            turn(20);                                              \
        }                                                          \
    } while (0)

static inline void turn_until_nobody_talks(void) {
    const uint64_t start = loop_clock_ns();
    uint64_t before = loop_clock_ns();
    size_t talking = crowd_count(&crowd, USER_TALKING);
    while (talking > 0) {
        turn(20);
        const size_t now = crowd_count(&crowd, USER_TALKING);
        if (now != talking) {
            before = loop_clock_ns();
        }
        talking = now;
        if (loop_clock_ns() - before > PATIENCE_NS) {
            CHECK_FAIL("%zu users are stuck after %g s", talking,
                       (double)(loop_clock_ns() - start) / 1e9);
        }
    }
}

static inline uint64_t event(enum stats_event which) {
    uint64_t sums[STATS_EVENTS];
    core_events(core, sums);
    return sums[which];
}

static inline uint64_t live(enum mem_kind kind) {
    uint64_t counts[MEM_KINDS];
    core_counts(core, counts);
    return counts[kind];
}

static inline uint64_t ends(void) {
    uint64_t sum = 0;
    for (size_t i = 0; i < REASONS; i++) {
        sum += n_ended[i];
    }
    return sum;
}

/* Stops the core: nothing is left of anything. */
static inline void stage_stop(void) {
    core_stop(core);
    crowd_leave(&crowd);
    stage_take_records();
    for (size_t i = 0; i < decider.n_late; i++) {
        core_question_free(core, &decider.late[i]);
    }
    struct upcall rest[16];
    size_t n;
    while ((n = core_recv_questions(core, rest, ARRAY_LEN(rest))) > 0) {
        for (size_t i = 0; i < n; i++) {
            core_question_free(core, &rest[i]);
        }
    }
    stage_take_released();
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        if (kind != MEM_CORE && live((enum mem_kind)kind) != 0) {
            CHECK_FAIL("%" PRIu64 " %s are left", live((enum mem_kind)kind),
                       mem_kind_name((enum mem_kind)kind));
        }
    }
    CHECK_INT_EQ(core_buffered(core), 0);
    CHECK_INT_EQ(event(EVENT_internal_errors), 0);
    CHECK_INT_EQ(event(EVENT_sockets_opened_source), event(EVENT_sockets_closed_source));
    CHECK_INT_EQ(event(EVENT_sockets_opened_destination), event(EVENT_sockets_closed_destination));
    core_free(core);
    core = NULL;
}

static inline void stage_clear(void) {
    const uint64_t until = loop_clock_ns() + PATIENCE_NS;
    while (echo.n_open > 0 && loop_clock_ns() < until) {
        usleep(1000);
    }
    CHECK_INT_EQ(echo.n_open, 0);
    echo_stop(&echo);
    certified_free(&root);
    certified_free(&client_leaf);
    certified_free(&server_leaf);
    CHECK_INT_EQ(count_descriptors(), n_descriptors);
}

static inline void tear_down(void) {
    stage_stop();
    stage_clear();
}

#endif
