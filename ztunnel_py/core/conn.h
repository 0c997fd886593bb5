/* SPDX-License-Identifier: Apache-2.0 */
/* One accepted connection or stream: what it is, its states, and its one ending.
 *
 * Lives on one worker. An outbound connection may be moved to the worker that has its tunnel, once,
 * before anything is read from it; in between it belongs to the message that carries it.
 * Every end passes through `conn_end`, once: the record is written, both sides are closed, and the
 * memory goes back after the turn (or when an answer that is under way has arrived).
 */
#ifndef ZT_CONN_H
#define ZT_CONN_H

#include "flow.h"
#include "io_fd.h"
#include "relay.h"
#include "stream.h"
#include "trace.h"
#include "workload.h"

enum conn_state {
    CONN_ASKING,     /* waits for a verdict */
    CONN_MOVING,     /* on its way to another worker */
    CONN_TUNNELLING, /* waits for a tunnel */
    CONN_REQUESTING, /* waits for the response to its CONNECT */
    CONN_DIALLING,   /* waits for the application, or the next hop */
    CONN_RELAYING,
    CONN_ENDED,
    CONN_STATES,
};

struct tunnel;

struct conn {
    struct list link; /* among the connections of its worker */
    struct worker *worker;
    struct workload *workload; /* a reference */
    enum conn_state state;
    enum key_kind kind;  /* KEY_OUTBOUND, KEY_INBOUND or KEY_PASSTHROUGH */
    enum key_kind asked; /* what `key` is of */
    uint64_t id;
    struct trace trace; /* its name on all nodes; inbound, the client's if that is valid */
    int fd;             /* accepted socket until it is relayed; -1 */
    struct io_fd client, upstream; /* sockets being relayed */
    struct stream *stream;         /* NULL: none */
    struct tunnel *tunnel;         /* leased (outbound) */
    struct tunnel *inner;          /* leased inside of a stream of `tunnel` (double HBONE) */
    uint64_t tunnel_id;            /* of the one whose stream it is; 0: none */
    struct list waiting;           /* among those who wait for `tunnel` */
    struct relay relay;
    struct timer timer;
    struct deferred later; /* an end that waits until the stack is unwound, or a dial */
    struct flow_waiter waiter;
    struct message move;
    struct grave grave;
    struct addr src, original_dst, dst, app;
    struct addr target; /* being dialled */
    uint8_t *key;       /* packed, owned; inbound keeps it for `live_keys` */
    size_t key_len;
    char *authority; /* terminated, owned, or NULL */
    struct verdict *verdict;
    const struct hop *hop; /* of `verdict` */
    uint64_t steps_ns[STEPS];
    uint64_t asked_ns; /* loop time of the question */
    void (*decided)(struct conn *conn, struct verdict *verdict);
    void (*connected)(struct conn *conn);
    enum reason dial_failed; /* what a dial that fails is called */
    enum reason kill_reason; /* REASON_OK: none is due */
    uint8_t tries;           /* dials that found no free port */
    int8_t tunnel_reused;    /* -1: there is no tunnel */
    bool dials_as_client;    /* with the client's address */
    bool is_opened;          /* labels are known: it counts, its end is CLOSED */
    bool opens_late;         /* better labels are hoped for; if it ends, these will do */
    bool has_client;         /* `client` is open */
    bool has_upstream;       /* `upstream` is open */
};

/* A connection of an accepted socket (`fd`) or of a stream (-1). Takes the descriptor, also when it
 * returns NULL (without memory). */
struct conn *conn_create(struct worker *worker, struct workload *workload, enum key_kind kind,
                         int fd, const struct addr *src, const struct addr *original_dst);

/* One place for all transitions. */
void conn_set_state(struct conn *conn, enum conn_state state);

/* Asks for a verdict on `conn->key`; `decided` runs later or now. The first verdict becomes that of
 * the connection; of a further one, `decided` takes the reference. */
void conn_ask(struct conn *conn, enum key_kind kind,
              void (*decided)(struct conn *conn, struct verdict *verdict));

/* Serves a captured socket, which it takes: packs its key and asks, see conn_ask. */
void conn_captured(struct worker *worker, struct workload *workload, enum key_kind kind, int fd,
                   const struct addr *src, const struct addr *dst,
                   void (*decided)(struct conn *conn, struct verdict *verdict));

/* Keeps a copy of the authority. False without memory. */
bool conn_keep_authority(struct conn *conn, struct text authority);

/* The accepted socket becomes `conn->client`. False if it cannot: the connection has ended. */
bool conn_open_client(struct conn *conn);

/* Takes a verdict's hop: labels are known, it counts from now on. `dst` is what the log calls the
 * destination. */
void conn_opened(struct conn *conn, const struct hop *hop, const struct addr *dst);

/* Ends it as its verdict, a denial, says. `dst` is what the log calls the destination. */
void conn_refuse(struct conn *conn, const struct addr *dst);

/* Ends it, once. `detail` completes the reason's text; may be NULL. */
void conn_end(struct conn *conn, enum reason reason, const char *detail);

/* The same at the end of this turn: safe from inside calls of its io's and its tunnel. */
void conn_end_later(struct conn *conn, enum reason reason);

/* The number of an error as ztunnel words it: `Connection refused (os error 111)`. */
void conn_error_text(int error, char *text, size_t size);

/* Moves bytes between its two sides from now on. */
void conn_relay(struct conn *conn, struct io *client, struct io *upstream);

/* Starts to connect to `target`, `source` as in sock_dial. `connected` or an end follows; `failed`
 * says how a failure is called. */
void conn_dial(struct conn *conn, const struct addr *target, bool as_client,
               void (*connected)(struct conn *conn), enum reason failed);

/* Makes the attempt that is due. */
void conn_dial_start(struct conn *conn);

#endif
