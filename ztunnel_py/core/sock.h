/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: listening, accepted, dialled; original destination; the client's own address.
 *
 * Source: spec dataplane, sections 1.4 to 1.7, and redirection, section 6. The reasons for what is
 * done in which order are in docs/decisions/0002-application-leg-and-lo.md.
 */
#ifndef ZT_SOCK_H
#define ZT_SOCK_H

#include "core.h"

/* Sockets are made in a network namespace: `netns` is its descriptor, -1 the one that we are in.
 * Every thread of this program lives in the same one, and is back there when a call returns; one
 * that could not come back would end the program. */

/* A bound, listening, non-blocking socket, or -1 with errno. Options of accepted sockets are set
 * here, they are inherited. `*bound` is its address. */
int sock_listen(const struct core_config *config, int netns, const struct core_listen *listen,
                struct addr *bound);

/* From now on connections go to whoever shares the address with this listener, if anybody does; it
 * keeps what the kernel has begun for it. */
void sock_step_aside(int fd);

/* Sets IP_TRANSPARENT, which tells whether client addresses can be kept. */
bool sock_make_transparent(int fd);

/* Where the client meant to go before redirection; its local address if there was none. False if
 * the connection is gone. */
bool sock_original_destination(int fd, struct addr *to);

/* The address belongs to the namespace: an ordinary socket can be bound to it. */
bool sock_is_local(int netns, const struct addr *addr);

/* The local address; false if the connection is gone. */
bool sock_local(int fd, struct addr *to);

/* Starts to connect; returns the socket, or -1 with errno. `*is_connected` tells whether it already
 * is (loopback), else wait until it is writable and ask `sock_error`. `source`, if not NULL, is the
 * client: its address is bound unless it is the target's own, and with `is_tied_to_lo` the loopback
 * device too. */
int sock_dial(const struct core_config *config, int netns, const struct addr *target,
              const struct addr *source, bool is_tied_to_lo, bool *is_connected);

/* What became of a connect: 0, or an errno. */
int sock_error(int fd);

#endif
