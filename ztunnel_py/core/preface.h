/* SPDX-License-Identifier: Apache-2.0 */
/* What an application is sent before the client's bytes: the PROXY v2 header.
 *
 * It tells an application behind an application tunnel who its client is: the address that the
 * client came from, the one that it asked for, and the identity that it proved.
 */
#ifndef ZT_PREFACE_H
#define ZT_PREFACE_H

#include "addr.h"

#define PREFACE_FIXED 55 /* bytes of the longest header without the identity itself */

/* Writes the header to `to`, which has `size` bytes. Addresses of different families cannot be
 * said: then the family is "unspecified", without any. An empty identity is left out. Returns the
 * length, 0 if it does not fit. */
size_t preface_proxy_v2(const struct addr *source, const struct addr *target, struct text identity,
                        uint8_t *to, size_t size);

#endif
