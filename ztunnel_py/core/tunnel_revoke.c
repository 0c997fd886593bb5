/* SPDX-License-Identifier: Apache-2.0 */
/* Tunnels whose other side is revoked: looked for after the lists changed, ended with what they
 * carry. A handshake that is verified later sees the new lists; the worker does one or the other.
 */
#include "conn.h"
#include "core_state.h"
#include "tunnel.h"

void tunnel_count_revoked(const struct tunnel *tunnel) {
    stats_count(&tunnel->worker->stats,
                tunnel->is_client ? EVENT_crl_rejections_source : EVENT_crl_rejections_destination);
}

/* Moves the revoked ones of a list. Returns how many. */
static size_t gather(struct list *from, struct list *to) {
    size_t n = 0;
    for (struct list *node = from->next; node != from;) {
        struct tunnel *const tunnel = CONTAINER_OF(node, struct tunnel, link);
        node = node->next;
        if (tunnel->state < TUNNEL_CLOSING && tls_is_revoked(&tunnel->tls)) {
            tunnel->is_revoked = true;
            list_remove(&tunnel->link);
            list_push(to, &tunnel->link);
            tunnel_count_revoked(tunnel);
            n++;
        }
    }
    return n;
}

static bool is_carried_by_revoked(const struct conn *conn) {
    if (conn->kind == KEY_OUTBOUND) {
        return (conn->tunnel != NULL && conn->tunnel->is_revoked) ||
               (conn->inner != NULL && conn->inner->is_revoked);
    }
    return conn->stream != NULL && conn->stream->h2 != NULL &&
           CONTAINER_OF(conn->stream->h2, struct tunnel, h2)->is_revoked;
}

size_t tunnel_end_revoked(struct worker *worker) {
    struct list revoked;
    list_init(&revoked);
    const size_t n = gather(&worker->tunnels, &revoked) + gather(&worker->handshakes, &revoked);
    for (struct list *node = worker->conns.next; n > 0 && node != &worker->conns;) {
        struct conn *const conn = CONTAINER_OF(node, struct conn, link);
        node = node->next;
        if (is_carried_by_revoked(conn)) {
            conn_end(conn, REASON_CERT_REVOKED, NULL);
        }
    }
    struct list *node;
    while ((node = list_pop(&revoked)) != NULL) {
        struct tunnel *const tunnel = CONTAINER_OF(node, struct tunnel, link);
        list_push(&worker->tunnels, &tunnel->link);
        tunnel_shut(tunnel, !tunnel->is_client, REASON_CERT_REVOKED, NULL);
    }
    return n;
}
