/* SPDX-License-Identifier: Apache-2.0 */
/* See sock.h. */
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define BACKLOG 1024
#define ORIGINAL_DST 80 /* SO_ORIGINAL_DST of netfilter, IPv4 and IPv6 alike */

static int home = -1; /* our own namespace; kept open as long as we run */

static void open_home(void) {
    home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

static int socket_in(int netns, int family, int type) {
    static pthread_once_t is_opened = PTHREAD_ONCE_INIT;
    if (netns < 0) {
        return socket(family, type, 0);
    }
    (void)pthread_once(&is_opened, open_home);
    if (home < 0 || setns(netns, CLONE_NEWNET) != 0) {
        return -1;
    }
    const int fd = socket(family, type, 0);
    const int error = errno;
    if (setns(home, CLONE_NEWNET) != 0) {
        abort(); /* what this thread does next would be done in somebody else's pod */
    }
    errno = error;
    return fd;
}

static bool set_int(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof(value)) == 0;
}

static void set_keepalive(const struct core_config *config, int fd) {
    /* A kernel that refuses one of these still serves. */
    if (config->keepalive) {
        (void)set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        (void)set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, (int)config->keepalive_time_s);
        (void)set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, (int)config->keepalive_interval_s);
        (void)set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, (int)config->keepalive_retries);
    }
    if (config->user_timeout) {
        const uint32_t limit_s =
            config->keepalive_time_s + config->keepalive_retries * config->keepalive_interval_s;
        (void)set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)(limit_s * 1000));
    }
}

static int close_with(int fd, int error) {
    if (fd >= 0) {
        close(fd);
    }
    errno = error;
    return -1;
}

static bool set_mark(const struct core_config *config, int fd) {
    return !config->has_mark || set_int(fd, SOL_SOCKET, SO_MARK, (int)config->mark);
}

int sock_listen(const struct core_config *config, int netns, const struct core_listen *listen_at,
                struct addr *bound) {
    const int family = listen_at->is_v6 ? AF_INET6 : AF_INET;
    const int fd = socket_in(netns, family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct sockaddr_storage name;
    const socklen_t len = addr_to_sockaddr(&listen_at->at, listen_at->is_v6, &name);
    const bool is_shared = netns >= 0 && config->port_reuse;
    const int off = 0;
    if (fd < 0 || !set_int(fd, SOL_SOCKET, is_shared ? SO_REUSEPORT : SO_REUSEADDR, 1) ||
        (listen_at->is_v6 && !set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0)) ||
        !set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1)) {
        return close_with(fd, errno);
    }
    if (netns >= 0 && !set_mark(config, fd)) { /* what is accepted there inherits it */
        return close_with(fd, errno);
    }
    if (listen_at->role != CORE_INBOUND) {
        set_keepalive(config, fd); /* PING watches the others */
    }
    if (bind(fd, (struct sockaddr *)&name, len) != 0 || listen(fd, BACKLOG) != 0 ||
        !sock_local(fd, bound)) {
        return close_with(fd, errno);
    }
    if (is_shared) { /* an earlier one may have stepped aside, which was not meant for us */
        (void)setsockopt(fd, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &off, sizeof(off));
    }
    return fd;
}

void sock_step_aside(int fd) {
    /* Of two listeners the elder is the first, so the second is the other one. Where there is no
     * second the kernel chooses as if there were no program. */
    struct sock_filter second = BPF_STMT(BPF_RET | BPF_K, 1);
    const struct sock_fprog program = {.len = 1, .filter = &second};
    (void)setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program));
}

bool sock_make_transparent(int fd) {
    return set_int(fd, SOL_IP, IP_TRANSPARENT, 1);
}

bool sock_local(int fd, struct addr *to) {
    struct sockaddr_storage name;
    socklen_t len = sizeof(name);
    if (getsockname(fd, (struct sockaddr *)&name, &len) != 0) {
        return false;
    }
    *to = addr_from_sockaddr((struct sockaddr *)&name);
    return to->family != 0;
}

bool sock_original_destination(int fd, struct addr *to) {
    struct sockaddr_storage name;
    socklen_t len = sizeof(name);
    memset(&name, 0, sizeof(name));
    if (getsockopt(fd, SOL_IP, ORIGINAL_DST, &name, &len) == 0) {
        name.ss_family = AF_INET;
        *to = addr_from_sockaddr((struct sockaddr *)&name);
        return true;
    }
    len = sizeof(struct sockaddr_in6);
    if (getsockopt(fd, SOL_IPV6, ORIGINAL_DST, &name, &len) == 0) {
        name.ss_family = AF_INET6;
        *to = addr_from_sockaddr((struct sockaddr *)&name);
        return true;
    }
    return sock_local(fd, to);
}

bool sock_is_local(int netns, const struct addr *addr) {
    struct addr any_port = *addr;
    any_port.port = 0;
    struct sockaddr_storage name;
    const socklen_t len = addr_to_sockaddr(&any_port, false, &name);
    const int probe = socket_in(netns, name.ss_family, SOCK_DGRAM | SOCK_CLOEXEC);
    const bool found = probe >= 0 && bind(probe, (struct sockaddr *)&name, len) == 0;
    if (probe >= 0) {
        close(probe);
    }
    return found;
}

/* Binds to an address that is not ours, port unchosen; failure leaves the socket unbound. The port
 * is chosen at connect, by the full tuple. */
static void bind_as(int fd, const struct addr *source, bool is_tied_to_lo) {
    const bool is_v6 = source->family == 6;
    const bool is_free =
        is_v6 ? set_int(fd, SOL_IPV6, IPV6_TRANSPARENT, 1) : set_int(fd, SOL_IP, IP_TRANSPARENT, 1);
    if (!is_free) {
        return;
    }
    if (set_int(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1) && is_tied_to_lo) {
        (void)setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
    }
    struct addr any_port = *source;
    any_port.port = 0;
    struct sockaddr_storage name;
    const socklen_t len = addr_to_sockaddr(&any_port, false, &name);
    (void)bind(fd, (struct sockaddr *)&name, len);
}

int sock_dial(const struct core_config *config, int netns, const struct addr *target,
              const struct addr *source, bool is_tied_to_lo, bool *is_connected) {
    struct sockaddr_storage name;
    const socklen_t len = addr_to_sockaddr(target, false, &name);
    const int fd = socket_in(netns, name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 || !set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1) || !set_mark(config, fd)) {
        return close_with(fd, errno);
    }
    set_keepalive(config, fd);
    if (source != NULL && !addr_same_ip(source, target)) {
        bind_as(fd, source, is_tied_to_lo);
    }
    *is_connected = connect(fd, (struct sockaddr *)&name, len) == 0;
    if (!*is_connected && errno != EINPROGRESS) {
        return close_with(fd, errno);
    }
    return fd;
}

int sock_error(int fd) {
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0) {
        return errno;
    }
    return error;
}
