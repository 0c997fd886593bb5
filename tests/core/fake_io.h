/* SPDX-License-Identifier: Apache-2.0 */
/* An `io` that does as a test says, and remembers what was asked of it.
 *
 * It takes `room` bytes of what is offered (FAKE_IO_ANY: all), which shrinks by what it took. The
 * test pushes, ends and breaks it by hand.
 */
#ifndef ZT_FAKE_IO_H
#define ZT_FAKE_IO_H

#include <errno.h>

#include "bytes.h"
#include "io.h"

#define FAKE_IO_ANY SIZE_MAX

struct fake_io {
    struct io io;
    size_t room;
    struct bytes taken; /* what was offered and taken */
    size_t consumed;    /* bytes pushed that were passed on */
    bool is_paused;     /* as the last of pause and resume says */
    unsigned n_pauses;
    unsigned n_resumes;
    unsigned n_ends;
    unsigned n_closes;
    bool was_end_hinted;  /* by the last offer */
    bool was_end_closing; /* the last end said that it is closed right after */
    int breaks_with;      /* an errno: the next offer breaks it, and it fails when the test says */
};

void fake_io_init(struct fake_io *fake);

/* Pushes bytes, in pieces of `piece` (0: one). */
void fake_io_push(struct fake_io *fake, const void *bytes, size_t len, size_t piece);

/* Nothing more comes from it. */
void fake_io_finish(struct fake_io *fake);

/* It breaks, as a socket with an errno. */
void fake_io_break(struct fake_io *fake, int number);

/* It breaks, as a stream that is reset. */
void fake_io_reset(struct fake_io *fake, uint32_t code);

/* It takes `room` bytes more, and says so. */
void fake_io_open(struct fake_io *fake, size_t room);

#endif
