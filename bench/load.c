/* SPDX-License-Identifier: Apache-2.0 */
/* The load generator's command line; see load.h. */
#include "load.h"

#include "net.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SECONDS = 600, MAX_CONNS = 100000, MAX_AWAKE_S = 3600 };

int load_epoll(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) {
        net_die("epoll_create1");
    }
    return epoll;
}

double load_seconds(uint64_t ns)
{
    return (double)ns / 1e9;
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
    uint64_t scale = 0;
    while (ns >> scale >= 2 * HISTOGRAM_FINE) {
        scale++;
    }
    uint64_t i = scale * HISTOGRAM_FINE + (ns >> scale);
    histogram->counts[i < HISTOGRAM_SIZE ? i : HISTOGRAM_SIZE - 1]++;
    histogram->n++;
}

/* Microseconds that `share` of the values do not exceed. */
static double histogram_at(const struct histogram *histogram, double share)
{
    double wanted = share * (double)histogram->n;
    uint64_t seen = 0;
    uint64_t i = 0;
    while (i < HISTOGRAM_SIZE - 1) {
        seen += histogram->counts[i];
        if ((double)seen >= wanted) {
            break;
        }
        i++;
    }
    uint64_t scale = i < 2 * HISTOGRAM_FINE ? 0 : i / HISTOGRAM_FINE - 1;
    uint64_t lowest = (i - scale * HISTOGRAM_FINE) << scale;
    return ((double)lowest + (double)(UINT64_C(1) << scale) / 2) / 1000;
}

void histogram_print(const struct histogram *histogram)
{
    (void)printf("\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f",
                 histogram_at(histogram, 0.5), histogram_at(histogram, 0.99),
                 histogram_at(histogram, 0.999));
}

/* Keeps a core from halting, at the lowest priority there is: waking a halted virtual core costs
 * more than what is measured. */
static void stay_awake(unsigned long seconds)
{
    const struct sched_param none = {0};
    if (sched_setscheduler(0, SCHED_IDLE, &none) != 0) {
        net_die("SCHED_IDLE");
    }
    net_bound((unsigned)seconds);
    for (volatile uint64_t turns = 0;; turns++) {
    }
}

struct command {
    const char *name;
    const char *arguments; /* C: n_conns, S: milliseconds, R: rate; each after HOST PORT */
    void (*run)(const struct job *job);
};

static const struct command COMMANDS[] = {
    {"bulk", "CS", load_bulk},
    {"connect", "CS", load_connect},
    {"hold", "CS", load_hold},
    {"short", "CSR", load_short},
    {"pingpong", "CS", load_pingpong},
    {"http", "CSR", load_http},
    {"pulse", "CSR", load_pulse},
    {"idle", "C", load_idle},
};

static int run(const struct command *command, char **argv)
{
    struct job job = {.to = net_address(argv[0], argv[1])};
    unsigned seconds = MAX_SECONDS;
    for (size_t i = 0; command->arguments[i] != '\0'; i++) {
        const char *text = argv[2 + i];
        switch (command->arguments[i]) {
        case 'C':
            job.n_conns = net_number(text, MAX_CONNS, "connections");
            break;
        case 'S':
            job.amount = net_number(text, MAX_SECONDS * 1000, "milliseconds") * 1000000;
            seconds = (unsigned)(job.amount / 1000000000);
            break;
        default:
            job.rate = net_number(text, MAX_CONNS, "rate");
        }
    }
    net_bound(seconds + 2 * GRACE_S); /* whatever hangs, it ends */
    net_raise_files();
    command->run(&job);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "awake") == 0) {
        stay_awake(net_number(argv[2], MAX_AWAKE_S, "seconds"));
    }
    for (size_t i = 0; argc > 1 && i < sizeof COMMANDS / sizeof COMMANDS[0]; i++) {
        bool is_named = strcmp(argv[1], COMMANDS[i].name) == 0;
        if (is_named && (size_t)argc == 4 + strlen(COMMANDS[i].arguments)) {
            return run(&COMMANDS[i], argv + 2);
        }
    }
    (void)fprintf(stderr, "usage: load bulk|connect|hold|pingpong HOST PORT CONNECTIONS MILLISECONDS\n"
                          "       load http|pulse HOST PORT CONNECTIONS MILLISECONDS PER_SECOND\n"
                          "       load short HOST PORT CONNECTIONS MILLISECONDS PORTS\n"
                          "       load idle HOST PORT CONNECTIONS\n"
                          "       load awake SECONDS\n");
    return 2;
}
