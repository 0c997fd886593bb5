/* SPDX-License-Identifier: Apache-2.0 */
/* The public face of the core: the only header that the binding includes.
 *
 * The core accepts, asks, acts and reports; it never decides. One thread, the decider's, makes all
 * calls below. Workers never call out: they announce by file descriptor. Calls marked [sync] are
 * carried out on every worker before they return; workers are never busy for long, and never wait
 * for the caller. All others return at once.
 *
 * Semantics, call by call: docs/boundary.md. Byte formats: key.h, verdict.h.
 */
#ifndef ZT_CORE_H
#define ZT_CORE_H

#include "addr.h"
#include "mem.h"
#include "reason.h"
#include "record.h"
#include "stats.h"
#include "upcall.h"

struct core;

enum core_role { CORE_OUTBOUND, CORE_INBOUND, CORE_PASSTHROUGH, CORE_ROLES };

#define CORE_ALL UINT32_MAX /* scope: every workload */

struct core_config {
    uint32_t n_workers;
    uint32_t stream_window;     /* bytes */
    uint32_t connection_window; /* bytes */
    uint32_t frame_size;        /* largest frame taken, bytes */
    uint32_t max_streams_served;
    uint32_t pool_max_streams;
    uint64_t pool_idle_ns;
    uint64_t ping_interval_ns;
    uint64_t ping_timeout_ns;
    uint64_t connect_timeout_ns;
    uint64_t handshake_timeout_ns;
    uint64_t decision_timeout_ns;    /* in all */
    uint64_t acknowledge_timeout_ns; /* until the decider has taken the question */
    uint32_t handshakes_at_once;     /* per workload */
    uint64_t buffer_budget;          /* bytes waiting for stalled readers, per workload */
    uint32_t flows_per_workload;     /* 0: no cache, every connection asks */
    uint32_t questions_per_workload;
    uint64_t flow_idle_ns;
    bool tls12;
    bool post_quantum; /* key exchange by X25519MLKEM768 only */
    int8_t orig_src;   /* keep client addresses: -1 try, 1 require, 0 never */
    bool keepalive;
    uint32_t keepalive_time_s;
    uint32_t keepalive_interval_s;
    uint32_t keepalive_retries;
    bool user_timeout;
    bool has_mark;
    uint32_t mark;        /* SO_MARK of dialled sockets; in other namespaces of listeners, too */
    bool port_reuse;      /* SO_REUSEPORT of listeners in other namespaces */
    bool report_opened;   /* records of kind OPENED are wanted */
    bool has_manual_time; /* time stands still until `core_advance` (tests) */
};

/* A listener to be bound. */
struct core_listen {
    enum core_role role;
    struct addr at;      /* port 0: the kernel chooses */
    bool is_v6;          /* `at` may be the IPv6 wildcard, which also takes IPv4 */
    struct addr bound;   /* out */
    bool is_transparent; /* out: client addresses can be kept */
};

/* --- life */

/* What stands in the way of this configuration's TLS, or NULL. */
const char *core_problem(const struct core_config *config);

/* Starts the workers. NULL with errno set. The calling thread, the decider's, asks for a short
 * slice of time. */
struct core *core_start(const struct core_config *config);

/* Ends what lives, then the workers. Records, releases and counters can still be read. [sync] */
void core_stop(struct core *core);

/* Frees a stopped core, also one whose records were not read. */
void core_free(struct core *core);

/* New connections go to another proxy that listens at the same addresses, if there is one; those
 * that the kernel has begun for us are still served. */
void core_step_aside(struct core *core);

/* Ends connections of one workload or of all (CORE_ALL). Graceful: listeners close after serving
 * what the kernel had accepted, inbound tunnels say GOAWAY, what runs may finish. Immediate: what
 * runs ends with REASON_DRAINED, what waits in the listeners' queues is not served. [sync] */
void core_drain(struct core *core, uint32_t workload, bool is_immediate);

/* Nothing lives on behalf of the scope but unused tunnels in the pool. */
bool core_is_idle(struct core *core, uint32_t workload);

/* Readable after a workload became idle, once `core_is_idle` has been asked; read 8 bytes to
 * re-arm. */
int core_idle_fd(const struct core *core);

/* --- workloads */

/* Binds all listeners, or none. Returns 0, or an errno with `*failed` the index of the listener
 * (EPERM: `orig_src` requires what the kernel refuses). `id` is new. `netns` is a descriptor of the
 * network namespace that the workload's sockets belong to, which is duplicated; -1: ours. */
int core_workload_add(struct core *core, uint32_t id, int netns, struct core_listen *listeners,
                      size_t n, size_t *failed);

/* Begins to accept. */
void core_workload_serve(struct core *core, uint32_t id);

/* Closes its listeners, ends its connections and tunnels at once, forgets its flows. [sync] */
void core_workload_remove(struct core *core, uint32_t id);

/* Serves a connected socket as if it had been accepted on the outbound listener with that original
 * destination (SOCKS5). Takes the descriptor. */
void core_adopt(struct core *core, uint32_t workload, int fd, const struct addr *src,
                const struct addr *dst);

/* --- identity */

/* New handshakes use this certificate. Texts are PEM. False if it cannot be used, `error` says why
 * (terminated). */
bool core_identity_set(struct core *core, uint32_t workload, struct text chain, struct text key,
                       struct text roots, char *error, size_t error_size);
void core_identity_drop(struct core *core, uint32_t workload);

/* Reads revocation lists, each DER, that take the place of all others with the next call below.
 * False if one cannot be read, `error` says why. Any thread. */
bool core_revocations_load(struct core *core, const struct text *lists, size_t n, char *error,
                           size_t error_size);

/* Uses them for new handshakes, and ends tunnels whose other side they revoke, with all that these
 * carry (REASON_CERT_REVOKED). Returns how many tunnels. [sync] */
size_t core_revocations_apply(struct core *core);

/* --- questions */

int core_question_fd(const struct core *core);
size_t core_recv_questions(struct core *core, struct upcall *to, size_t limit);
void core_question_free(struct core *core, struct upcall *question);

/* Answers a question. False if the bytes are malformed: the question is then answered with a denial
 * (REASON_DECIDER_ERROR) and the tag not taken. Answers to questions that are no longer open are
 * ignored, their tag is released. */
bool core_reply(struct core *core, uint64_t question, const uint8_t *verdict, size_t len,
                uint64_t tag);

/* Tags of verdicts that nothing refers to any more. */
size_t core_recv_released(struct core *core, uint64_t *tags, size_t limit);

/* --- epochs and live flows */

struct epoch core_epoch(struct core *core);
void core_epoch_bump(struct core *core, bool discovery, bool policy);

/* A live inbound connection and its complete key. */
struct core_live {
    uint64_t conn;
    enum key_kind kind;
    uint8_t *key;
    size_t key_len;
};

/* Every live inbound connection of a workload that has a key, also one that waits or dials. `*to`
 * is freed with `core_live_free`. Returns how many. [sync] */
size_t core_live_keys(struct core *core, uint32_t workload, struct core_live **to);
void core_live_free(struct core *core, struct core_live *live, size_t n);

/* Ends connections; unknown ids are ignored. [sync] */
void core_conn_kill(struct core *core, const uint64_t *conns, size_t n, enum reason reason);

/* --- looking */

struct core_conn_view {
    uint64_t id;
    struct trace trace;
    uint32_t workload;
    bool is_inbound;
    bool has_hop;
    uint8_t protocol; /* enum hop_protocol */
    struct addr src, original_dst, dst, app;
    char *authority; /* or NULL */
    uint64_t age_ns;
    uint64_t upstream_bytes, downstream_bytes;
    uint64_t tunnel;            /* id of the tunnel it is a stream of, or 0 */
    uint64_t client_stalled_ns; /* for how long bytes have waited for the client, 0: they do not */
    uint64_t upstream_stalled_ns;
    uint64_t client_waiting; /* those bytes */
    uint64_t upstream_waiting;
    const char *state; /* "deciding", "dialling", "relaying", .. */
};

struct core_tunnel_view {
    uint64_t id;
    uint32_t workload;
    bool is_inbound;
    bool is_draining;
    struct addr remote;
    char *identity; /* or NULL */
    uint32_t streams;
    uint32_t worker;
    uint64_t age_ns;
    uint64_t received_bytes, sent_bytes; /* of DATA */
    uint64_t stalled_ns;                 /* for how long the socket has taken nothing, 0: it does */
    uint64_t unsent_bytes;
    int32_t send_window;    /* what the other side lets us send on the connection */
    int32_t receive_window; /* what we let it send */
};

/* What lives. `*to` is freed with the function below it. [sync] */
size_t core_connections(struct core *core, struct core_conn_view **to);
void core_connections_free(struct core *core, struct core_conn_view *views, size_t n);
size_t core_tunnels(struct core *core, struct core_tunnel_view **to);
void core_tunnels_free(struct core *core, struct core_tunnel_view *views, size_t n);

/* Live objects by mem_kind. */
void core_counts(struct core *core, uint64_t counts[MEM_KINDS]);

/* Bytes held in buffers. */
uint64_t core_buffered(struct core *core);

/* --- numbers and records */

/* Sums of all workers: `n_slots` * STATS_COLUMNS numbers. */
void core_slots(struct core *core, uint64_t *sums, size_t n_slots);

/* STATS_EVENTS numbers; names: stats_event_name(). */
void core_events(struct core *core, uint64_t *sums);

int core_record_fd(const struct core *core);
size_t core_recv_records(struct core *core, struct record *to, size_t limit);
void core_record_release(struct core *core, struct record *record);

/* Whether records of kind OPENED are wanted, from now on. */
void core_report_opened(struct core *core, bool is_wanted);

/* --- tests */

/* Moves the manual clock, running timers in order. [sync] */
void core_advance(struct core *core, uint64_t ns);

/* Returns once every worker has handled the events it knew of. [sync] */
void core_fence(struct core *core);

#endif
