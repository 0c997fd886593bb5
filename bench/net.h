/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets, time and failure, for the benchmark's programs.
 *
 * All sockets are IPv4 and do not block. Every program is one thread around one epoll, and every
 * error that makes a measurement worthless ends it with a message. */
#ifndef BENCH_NET_H
#define BENCH_NET_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/epoll.h>

enum {
    NET_CHUNK = 128 * 1024, /* bytes of one read or write */
    NET_BATCH = 256,        /* events taken from the kernel at once */
    NET_HTTP_ANSWER = 1024, /* bytes of the sink's whole answer to an HTTP request */
};

/* Prints `what` and the text of errno, exits with 1. */
_Noreturn void net_die(const char *what);

/* Nanoseconds on the monotonic clock. */
uint64_t net_now(void);

/* The number in `text`, at most `max`; dies with `what` if it is none. */
unsigned long net_number(const char *text, unsigned long max, const char *what);

/* The address `host`:`port`; dies if it is none. */
struct sockaddr_in net_address(const char *host, const char *port);

/* A listening socket on all addresses. */
int net_listen(uint16_t port, uint32_t mark);

/* A socket that has begun to connect, or -1 with errno; `mark` 0 sets none. */
int net_dial(const struct sockaddr_in *to, uint32_t mark);

/* The next waiting connection of a listener, or -1 if there is none (now). */
int net_accept(int listener);

/* The pending error of a socket, as errno; 0 if it is well. */
int net_error(int fd);

/* Adds or changes (`op`) what epoll reports for `fd`, with `owner` as the event's pointer. */
void net_watch(int epoll, int op, int fd, uint32_t events, void *owner);

/* Ends the process when the program that started it ends, and in any case after `seconds`. */
void net_bound(unsigned seconds);

/* Lets the process open as many files as the hard limit allows. */
void net_raise_files(void);

#endif
