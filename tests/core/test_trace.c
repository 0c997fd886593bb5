/* SPDX-License-Identifier: Apache-2.0 */
/* The id of a connection, as it is sent and read. */
#include "trace.h"

#include "check.h"

#define VALUE "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TEST(what_is_written_is_read) {
    const struct trace trace = {.high = 0xfedcba9876543210, .low = 1, .span = 0x0f};
    char value[TRACE_SIZE];
    struct trace again = {0};

    trace_format(&trace, value);

    CHECK(strcmp(value, "00-fedcba98765432100000000000000001-000000000000000f-00") == 0);
    CHECK(trace_parse(text_of(value), &again));
    CHECK_MEM_EQ(&trace, sizeof(trace), &again, sizeof(again));
}

TEST(flags_do_not_matter) {
    struct trace trace = {0};

    CHECK(trace_parse(text_of(VALUE), &trace));
    CHECK(trace.high == 0x0af7651916cd43dd);
    CHECK(trace.low == 0x8448eb211c80319c);
    CHECK(trace.span == 0xb7ad6b7169203331);
}

TEST(anything_else_is_refused_and_changes_nothing) {
    static const char *const WRONG[] = {
        "",
        "00-",
        "0000000000000000000000000000000000000000000000000000000",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319\n-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331_01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        VALUE "-",
        VALUE "0",
    };
    const struct trace before = {1, 2, 3};

    for (size_t i = 0; i < ARRAY_LEN(WRONG); i++) {
        struct trace trace = before;
        CHECK(!trace_parse(text_of(WRONG[i]), &trace));
        CHECK_MEM_EQ(&before, sizeof(before), &trace, sizeof(trace));
    }
}
