/* SPDX-License-Identifier: Apache-2.0 */
/* What nghttp2 calls back: frames as they are read, and bytes as they are sent. For h2.c only.
 *
 * Nothing here sends while `h2_receive` runs, see h2.h.
 */
#ifndef ZT_H2_CALLBACKS_H
#define ZT_H2_CALLBACKS_H

#include "h2.h"

/* MAX_CONCURRENT_STREAMS as the library is told it: its own limit ends connections, ours refuses
 * streams. The other side is shown ours. */
#define H2_STREAMS_UNLIMITED 1000000

static const uint8_t H2_PING[8] = {0x3b, 0x7c, 0xdb, 0x7a, 0x0b, 0x87, 0x16, 0xb4};
static const uint8_t H2_DRAIN_PING[8] = {0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54};

/* All callbacks of a session; NULL without memory. */
nghttp2_session_callbacks *h2_callbacks_create(void);

/* Data provider of every stream: its `out`, then its end. */
ssize_t h2_callbacks_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length,
                          uint32_t *flags, nghttp2_data_source *source, void *user);

/* HTTP/2 knows the stream no longer. */
void h2_forget(struct h2 *h2, struct stream *stream);

#endif
