/* SPDX-License-Identifier: Apache-2.0 */
/* A test program: claims, tests that register themselves, a process and a time limit for each.
 *
 *     TEST(an_empty_list_is_empty) { CHECK(list_is_empty(&list)); }
 *
 * Included once by each program, which then has a `main`: it runs all its tests, or those whose
 * name contains its argument, each in a process of its own, and prints TAP. The last line is "N
 * passed, N failed". A claim that does not hold ends its test at once; what a test leaves behind is
 * found by the leak sanitizer, if there is one.
 */
#ifndef ZT_CHECK_H
#define ZT_CHECK_H

#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CHECK_TIMEOUT_S
#define CHECK_TIMEOUT_S 20
#endif

struct check_test {
    const char *name;
    void (*run)(void);
    struct check_test *next; /* in the order of the file */
};

static struct check_test *check_first;
static struct check_test *check_last;

/* Constructors run in the order of the file, before `main`. */
#define TEST(claim)                                                               \
    static void claim(void);                                                      \
    static struct check_test claim##_test = {#claim, claim, NULL};                \
    __attribute__((constructor)) static void claim##_add(void) {                  \
        *(check_last == NULL ? &check_first : &check_last->next) = &claim##_test; \
        check_last = &claim##_test;                                               \
    }                                                                             \
    static void claim(void)

#define CHECK_FAIL(...)                                \
    do {                                               \
        (void)printf("# %s:%d: ", __FILE__, __LINE__); \
        (void)printf(__VA_ARGS__);                     \
        (void)printf("\n");                            \
        (void)fflush(stdout);                          \
        _exit(1);                                      \
    } while (0)

#define CHECK(claim)                                 \
    do {                                             \
        if (!(claim)) {                              \
            CHECK_FAIL("does not hold: %s", #claim); \
        }                                            \
    } while (0)

/* Two numbers of any integer type up to 64 bits. */
#define CHECK_INT_EQ(a, b)                                                             \
    do {                                                                               \
        const int64_t check_a = (int64_t)(a), check_b = (int64_t)(b);                  \
        if (check_a != check_b) {                                                      \
            CHECK_FAIL("%s is %" PRId64 ", %s is %" PRId64, #a, check_a, #b, check_b); \
        }                                                                              \
    } while (0)

#define CHECK_STR_EQ(a, b)                                                      \
    do {                                                                        \
        const char *const check_a = (a), *const check_b = (b);                  \
        if (strcmp(check_a, check_b) != 0) {                                    \
            CHECK_FAIL("%s is \"%s\", %s is \"%s\"", #a, check_a, #b, check_b); \
        }                                                                       \
    } while (0)

/* Bytes and their number; the first difference is shown. */
#define CHECK_MEM_EQ(a, a_len, b, b_len)                                                         \
    do {                                                                                         \
        const uint8_t *const check_p = (const void *)(a), *const check_q = (const void *)(b);    \
        CHECK_INT_EQ(a_len, b_len);                                                              \
        for (size_t check_i = 0; check_i < (size_t)(a_len); check_i++) {                         \
            if (check_p[check_i] != check_q[check_i]) {                                          \
                CHECK_FAIL("%s[%zu] is 0x%02x, %s[..] is 0x%02x", #a, check_i, check_p[check_i], \
                           #b, check_q[check_i]);                                                \
            }                                                                                    \
        }                                                                                        \
    } while (0)

/* Runs one test in a process of its own; true if it passed. */
static bool check_run(const struct check_test *test) {
    int status = 0;
    (void)fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        (void)alarm(CHECK_TIMEOUT_S);
        test->run();
        exit(0); /* not _exit: the leak sanitizer looks now */
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        return false;
    }
    if (WIFSIGNALED(status)) {
        (void)printf("# %s\n", WTERMSIG(status) == SIGALRM ? "timed out" : "killed by a signal");
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv) {
    unsigned n = 0;
    unsigned failed = 0;
    for (const struct check_test *test = check_first; test != NULL; test = test->next) {
        if (argc > 1 && strstr(test->name, argv[1]) == NULL) {
            continue;
        }
        const bool is_passed = check_run(test);
        failed += is_passed ? 0 : 1;
        (void)printf("%s %u - %s\n", is_passed ? "ok" : "not ok", ++n, test->name);
    }
    (void)printf("1..%u\n%u passed, %u failed\n", n, n - failed, failed);
    return failed == 0 ? 0 : 1;
}

#endif
