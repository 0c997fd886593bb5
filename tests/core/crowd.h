/* SPDX-License-Identifier: Apache-2.0 */
/* Users of an echo, many at a time on one thread: each says so many bytes, checks what comes back,
 * and ends in its own way. */
#ifndef ZT_CROWD_H
#define ZT_CROWD_H

#include "tcp_pair.h"

#define CROWD_MOST 512
#define USER_TURNS 16 /* pieces that one user says or hears before it is another's turn */

enum user_way {
    USER_ENDS,   /* a FIN behind the last byte, then it reads to the end */
    USER_WAITS,  /* says all, reads all, at least a byte, and keeps the connection */
    USER_RESETS, /* a RST once all is said */
    USER_LEAVES, /* closes once all is said, whatever is on its way */
};

enum user_state {
    USER_UNUSED,
    USER_TALKING,
    USER_DONE, /* as it wanted */
    USER_CUT,  /* the connection ended before */
};

struct user {
    enum user_state state;
    enum user_way way;
    int fd;                       /* -1: closed */
    uint64_t length, sent, heard; /* bytes */
    uint8_t seed;                 /* where its pattern begins */
    bool has_ended;               /* its FIN was sent */
};

struct crowd {
    struct user users[CROWD_MOST];
    size_t n; /* users in use, from the first one */
};

static inline uint8_t user_byte(const struct user *user, uint64_t at) {
    return (uint8_t)(user->seed + at + at / 251);
}

static inline void user_close(struct user *user, enum user_state state) {
    close(user->fd);
    user->fd = -1;
    user->state = state;
}

/* Starts to connect from `source` (host order, 0: any address). */
static inline struct user *crowd_add(struct crowd *crowd, const struct sockaddr_in *to,
                                     uint32_t source, uint64_t length, enum user_way way) {
    struct user *user = NULL;
    for (size_t i = 0; i < CROWD_MOST && user == NULL; i++) {
        if (crowd->users[i].state != USER_TALKING && crowd->users[i].fd <= 0) {
            user = &crowd->users[i];
            crowd->n = i + 1 > crowd->n ? i + 1 : crowd->n;
        }
    }
    CHECK(user != NULL);
    *user = (struct user){.state = USER_TALKING, .way = way, .length = length};
    user->seed = (uint8_t)(length * 7);
    user->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(user->fd >= 0);
    if (source != 0) {
        const struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(source)};
        CHECK(bind(user->fd, (const struct sockaddr *)&from, sizeof(from)) == 0);
    }
    CHECK(connect(user->fd, (const struct sockaddr *)to, sizeof(*to)) == 0 || errno == EINPROGRESS);
    return user;
}

/* Says more, for a while; true if the user goes on. */
static inline bool user_talk(struct user *user) {
    uint8_t bytes[16384];
    for (int turns = 0; user->sent < user->length; turns++) {
        if (turns == USER_TURNS) {
            return true;
        }
        const uint64_t left = user->length - user->sent;
        const size_t len = left < sizeof(bytes) ? (size_t)left : sizeof(bytes);
        for (size_t i = 0; i < len; i++) {
            bytes[i] = user_byte(user, user->sent + i);
        }
        const ssize_t n = send(user->fd, bytes, len, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) {
                user_close(user, USER_CUT);
            }
            return errno == EAGAIN;
        }
        user->sent += (uint64_t)n;
    }
    if (user->way == USER_RESETS) {
        tcp_reset(user->fd);
        user->fd = -1;
        user->state = USER_DONE;
        return false;
    }
    if (user->way == USER_LEAVES) {
        user_close(user, USER_DONE);
        return false;
    }
    if (user->way == USER_ENDS && !user->has_ended) {
        user->has_ended = true;
        (void)shutdown(user->fd, SHUT_WR); /* one that broke is met by reading */
    }
    return true;
}

/* Hears more, for a while. */
static inline void user_listen(struct user *user) {
    uint8_t bytes[16384];
    for (int turns = 0; turns < 2 * USER_TURNS; turns++) {
        const ssize_t n = recv(user->fd, bytes, sizeof(bytes), 0);
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n <= 0) {
            const bool is_done = n == 0 && user->has_ended && user->heard == user->length;
            user_close(user, is_done ? USER_DONE : USER_CUT);
            return;
        }
        for (ssize_t i = 0; i < n; i++) {
            CHECK_INT_EQ(bytes[i], user_byte(user, user->heard + (uint64_t)i));
        }
        user->heard += (uint64_t)n;
        CHECK(user->heard <= user->sent);
        if (user->way == USER_WAITS && user->heard == user->length) {
            user->state = USER_DONE;
        }
    }
}

/* Lets everybody talk and listen; waits up to `wait_ms` for that, and for `also`. */
static inline void crowd_turn(struct crowd *crowd, int wait_ms, const int *also, size_t n_also) {
    static struct pollfd fds[CROWD_MOST + 8];
    for (size_t i = 0; i < crowd->n; i++) {
        const struct user *const user = &crowd->users[i];
        const bool is_open = user->state != USER_UNUSED && user->fd >= 0;
        fds[i].fd = is_open ? user->fd : -1;
        fds[i].events =
            (short)(POLLIN | (user->sent < user->length || user->heard == 0 ? POLLOUT : 0));
        if (is_open && user->sent == user->length && (user->has_ended || user->way == USER_WAITS)) {
            fds[i].events = POLLIN;
        }
    }
    for (size_t i = 0; i < n_also; i++) {
        fds[crowd->n + i] = (struct pollfd){.fd = also[i], .events = POLLIN};
    }
    (void)poll(fds, crowd->n + n_also, wait_ms);
    for (size_t i = 0; i < crowd->n; i++) {
        struct user *const user = &crowd->users[i];
        if (fds[i].fd < 0 || fds[i].revents == 0) {
            continue;
        }
        if ((fds[i].revents & POLLOUT) == 0 || user_talk(user)) {
            user_listen(user);
        }
    }
}

static inline size_t crowd_count(const struct crowd *crowd, enum user_state state) {
    size_t n = 0;
    for (size_t i = 0; i < crowd->n; i++) {
        n += crowd->users[i].state == state;
    }
    return n;
}

/* Everybody leaves, also those who have said nothing yet. */
static inline void crowd_leave(struct crowd *crowd) {
    for (size_t i = 0; i < crowd->n; i++) {
        if (crowd->users[i].state != USER_UNUSED && crowd->users[i].fd >= 0) {
            user_close(&crowd->users[i], crowd->users[i].state);
        }
        crowd->users[i] = (struct user){.fd = -1};
    }
    crowd->n = 0;
}

#endif
