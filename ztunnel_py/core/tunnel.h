/* SPDX-License-Identifier: Apache-2.0 */
/* One HBONE connection: a transport, TLS, HTTP/2, and what keeps it alive or ends it.
 *
 * A server tunnel is accepted (tunnel_accept), a client tunnel is leased: connections that come
 * together wait for one handshake and all get its error. The transport is a socket, or a stream of
 * another tunnel (double HBONE).
 *
 * Small frames gather and leave as one TLS record and one write at the end of the turn; large ones
 * leave at once. When the transport takes no more, streams are not asked for bytes until it does.
 * The end: GOAWAY, close_notify, and the socket goes to a linger (linger.h), so that the last words
 * arrive.
 */
#ifndef ZT_TUNNEL_H
#define ZT_TUNNEL_H

#include "flow.h"
#include "h2.h"
#include "io.h"
#include "tls.h"
#include "workload.h"
#include "worker.h"

enum tunnel_state {
    TUNNEL_IDENTIFYING, /* waits for the workload's certificate */
    TUNNEL_DIALLING,
    TUNNEL_SHAKING,
    TUNNEL_OPEN,
    TUNNEL_CLOSING, /* over, its last words are leaving */
    TUNNEL_CLOSED,
};

struct conn;

struct tunnel {
    struct list link;   /* among the tunnels of its worker */
    struct list pooled; /* in the pool; in none once it takes no new streams */
    struct worker *worker;
    struct workload *workload; /* a reference */
    enum tunnel_state state;
    bool is_client;
    uint64_t id;
    uint64_t born_ns;        /* clock */
    uint64_t hash;           /* of the pool's key */
    struct addr remote;      /* dialled, or the client's */
    struct addr source;      /* pool key: source ip */
    struct addr local;       /* server: the address that was dialled */
    struct verdict *verdict; /* client: a reference, for `hop` */
    const struct hop *hop;   /* client: identities, next hop */
    bool is_inner;           /* uses the inner identities of `hop` */
    uint32_t users;          /* leases: streams that live or are about to be opened */
    struct list waiting;     /* of struct conn: who waits for the handshake */
    int fd;                  /* -1: none */
    struct watch watch;
    struct io *under;   /* instead of `fd` (double HBONE) */
    struct sink sink;   /* of `under` */
    struct queue inbox; /* wire bytes that `under` brought */
    int under_error;    /* errno that broke it */
    struct deferred read_more, flush;
    struct timer timer; /* deadline, PING, or the wait for last words */
    struct timer idle;  /* unused */
    struct flow_waiter waiter;
    struct message move;
    struct grave grave;
    struct ident *ident; /* for TLS, until it begins */
    struct tls tls;
    struct h2 h2;
    struct block *plain;    /* small frames that gather */
    struct stream *pushing; /* whose bytes are gathered in `gathered` */
    struct iovec gathered[64];
    unsigned n_joined; /* small frames since the last record left */
    int n_gathered;
    size_t gathered_len;
    uint64_t stalled_since; /* the transport takes nothing, loop time; 0: it does */
    size_t unsent_before;   /* at the last look while closing */
    bool can_read;
    bool saw_hup; /* an end or an error is behind what can be read */
    bool has_under_ended;
    bool is_flushing;     /* what is said now leaves anyway */
    bool is_full;         /* where `pooled` is */
    bool is_live;         /* counted as living on behalf of the workload */
    bool is_pinging;      /* a PING is not answered yet */
    bool is_draining;     /* no new streams; closes when idle */
    bool drain_confirmed; /* the client knows */
    bool close_when_idle; /* no new streams from us */
    bool is_revoked;      /* the other side's certificate is */
    bool is_broken;       /* TLS or memory failed: ends at the next occasion */
    bool must_unblock;    /* streams may be writable */
    bool is_answer_late;  /* freed when the answer under way arrives */
};

/* Serves a socket accepted on 15008; takes it. The tunnel may move to another worker. */
void tunnel_accept(struct worker *worker, struct workload *workload, int fd, const struct addr *src,
                   const struct addr *local);

/* A place on a tunnel for a connection whose verdict and hop are known: sets `conn->tunnel` and
 * `conn->tunnel_reused`. Calls `outbound_tunnelled` or `outbound_failed`, now or later. */
void tunnel_lease(struct conn *conn);

/* The tunnel inside of `outer`, a stream whose CONNECT was answered (double HBONE): it takes the
 * stream, sets `conn->inner`, and `outbound_tunnelled` or an end of the connection follows. */
void tunnel_lease_inner(struct conn *conn, struct stream *outer);

/* Gives a place back, once. */
void tunnel_give_back(struct tunnel *tunnel);

/* New streams may be opened on it. */
bool tunnel_is_usable(const struct tunnel *tunnel);

/* How many streams it takes. */
uint32_t tunnel_capacity(const struct tunnel *tunnel);

/* Who the other side is; empty before the handshake. */
struct text tunnel_identity(const struct tunnel *tunnel);

/* Sends at the end of this turn what has been said. */
void tunnel_flush_later(struct tunnel *tunnel);

/* Server: GOAWAY, running streams finish, then it closes. Client: no new streams. */
void tunnel_drain(struct tunnel *tunnel);

/* Client: takes no new streams, closes once unused. */
void tunnel_retire(struct tunnel *tunnel);

/* Closes in order: GOAWAY if `says_goaway`, close_notify, and what is unsent still leaves. A
 * handshake that was not complete ends with `reason`. */
void tunnel_shut(struct tunnel *tunnel, bool says_goaway, enum reason reason, const char *detail);

/* Closes at once, with nothing further said; a handshake ends with `reason`. */
void tunnel_abort(struct tunnel *tunnel, enum reason reason, const char *detail);

/* Ends the tunnels of a worker whose other side is revoked by now, and what they carry. Returns how
 * many. */
size_t tunnel_end_revoked(struct worker *worker);

/* --- for tunnel*.c --- */

const struct core_config *tunnel_config(const struct tunnel *tunnel);

/* A new one, in no list; NULL without memory. */
struct tunnel *tunnel_create(struct worker *worker, struct workload *workload, bool is_client,
                             const struct addr *remote);

/* Gives the memory back once nobody holds a lease and no answer is under way. */
void tunnel_bury_if_unused(struct tunnel *tunnel);

/* Its handshake is not complete. */
bool tunnel_is_handshake(const struct tunnel *tunnel);

/* Begins the handshake: waits for the workload's certificate if there is none. */
void tunnel_identify(struct tunnel *tunnel);

/* Begins to use the transport: `fd` is connected. */
void tunnel_begin(struct tunnel *tunnel);

/* The connect is over. */
void tunnel_connected(struct tunnel *tunnel, uint32_t events);

/* The handshake's deadline has passed. */
void tunnel_handshake_late(struct tunnel *tunnel);

/* Tells whoever waited for the handshake that it failed. */
void tunnel_handshake_failed(struct tunnel *tunnel, enum reason reason, const char *detail);

/* Makes the TLS side from `ident`. A server does that when the first bytes arrive, so that a client
 * that never says a word costs little. False without memory. */
bool tunnel_begin_tls(struct tunnel *tunnel);

/* Counts one whose other side is revoked. */
void tunnel_count_revoked(const struct tunnel *tunnel);

/* TLS is complete and the other side accepted. */
void tunnel_established(struct tunnel *tunnel);

/* Encrypts small frames that gathered. */
void tunnel_flush_plain(struct tunnel *tunnel);

/* Sends encrypted bytes as far as the transport takes them. */
void tunnel_send(struct tunnel *tunnel);

/* The last words have left, or cannot. */
void tunnel_finished(struct tunnel *tunnel);

/* The PING came back. */
void tunnel_ponged(struct tunnel *tunnel, bool is_drain);

/* Closes a tunnel that is to go and carries nothing. */
void tunnel_settle(struct tunnel *tunnel);

/* Sets up everything about the transport. */
void tunnel_io_init(struct tunnel *tunnel);

extern const struct h2_ops tunnel_h2_ops;

#endif
