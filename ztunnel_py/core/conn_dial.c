/* SPDX-License-Identifier: Apache-2.0 */
/* Dialling: a connection's way to its application or its next hop, with its patience; see conn.h.
 */
#include <errno.h>
#include <unistd.h>

#include "conn.h"
#include "core_state.h"
#include "sock.h"

#define PORTS_USED_UP_NS (100 * NS_PER_MS)
#define DIALS_MAX 31

static void dial_failed(struct conn *conn, int error) {
    char detail[160];
    conn_error_text(error, detail, sizeof(detail));
    conn_end(conn, conn->dial_failed, detail);
}

static void dial_close(struct conn *conn) {
    conn->upstream.io.ops->close(&conn->upstream.io);
    conn->has_upstream = false;
}

/* A plaintext connection was redirected with its own tuple, which ours must not be. */
static bool has_clients_port(const struct conn *conn) {
    struct addr local;
    return conn->dials_as_client && conn->kind == KEY_PASSTHROUGH &&
           sock_local(conn->upstream.watch.fd, &local) && addr_equal(&local, &conn->src);
}

static void dial_done(struct conn *conn, int error) {
    if (error == EADDRNOTAVAIL && conn->dials_as_client && ++conn->tries < DIALS_MAX) {
        /* All source ports are in use or in TIME_WAIT: some come back within a second. */
        if (!loop_arm(&conn->worker->loop, &conn->timer, PORTS_USED_UP_NS)) {
            dial_failed(conn, ENOMEM);
        }
        return;
    }
    if (error != 0) {
        dial_failed(conn, error);
        return;
    }
    if (has_clients_port(conn)) {
        dial_close(conn);
        if (++conn->tries < DIALS_MAX) {
            conn_dial_start(conn);
        } else {
            dial_failed(conn, EADDRINUSE);
        }
        return;
    }
    loop_disarm(&conn->worker->loop, &conn->timer);
    conn->steps_ns[STEP_CONNECTED] = loop_clock_ns();
    conn->connected(conn);
}

static void dial_ready(struct io_fd *io) {
    struct conn *const conn = CONTAINER_OF(io, struct conn, upstream);
    const int error = sock_error(io->watch.fd);
    if (error != 0) {
        dial_close(conn);
    }
    dial_done(conn, error);
}

void conn_dial_start(struct conn *conn) {
    struct worker *const worker = conn->worker;
    const int netns = conn->workload->netns;
    const struct addr *const target = &conn->target;
    const struct addr *const source = conn->dials_as_client ? &conn->src : NULL;
    const bool is_tied_to_lo = source != NULL && churn_uses_lo(&worker->churn, worker->mem, netns,
                                                               source, target, worker->loop.now_ns);
    bool is_connected = false;
    const int fd =
        sock_dial(&worker->core->config, netns, target, source, is_tied_to_lo, &is_connected);
    if (fd < 0) {
        dial_done(conn, errno);
        return;
    }
    conn->has_upstream = io_fd_open(&conn->upstream, worker, fd);
    if (!conn->has_upstream) {
        const int error = errno;
        close(fd);
        dial_failed(conn, error);
    } else if (is_connected) {
        dial_done(conn, 0);
    } else {
        conn->upstream.connected = dial_ready;
    }
}

void conn_dial(struct conn *conn, const struct addr *target, bool as_client,
               void (*connected)(struct conn *conn), enum reason failed) {
    conn_set_state(conn, CONN_DIALLING);
    conn->target = *target;
    conn->dials_as_client = as_client;
    conn->connected = connected;
    conn->dial_failed = failed;
    conn->tries = 0;
    if (!loop_arm(&conn->worker->loop, &conn->timer,
                  conn->worker->core->config.connect_timeout_ns)) {
        dial_failed(conn, ENOMEM);
        return;
    }
    if (conn->stream != NULL) {
        /* One that is reset in the same breath costs no socket; many do not hold up the others. */
        loop_defer_slow(&conn->worker->loop, &conn->later);
    } else {
        conn_dial_start(conn);
    }
}
