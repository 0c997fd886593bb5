/* SPDX-License-Identifier: Apache-2.0 */
/* What crosses the binding, in both directions: bytes, ints, and tuples of them.
 *
 * Addresses cross packed (ADDR_PACKED bytes, addr.h); texts that only people read cross as str.
 * The `convert_*` functions for arguments follow the protocol of PyArg_ParseTuple's "O&". All need
 * the GIL. */
#ifndef ZT_CONVERT_H
#define ZT_CONVERT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

/* --- arguments: 1, or 0 with an exception set */

int convert_u32(PyObject *from, void *to); /* uint32_t */
int convert_u64(PyObject *from, void *to); /* uint64_t */

/* ADDR_PACKED bytes to struct addr. */
int convert_addr(PyObject *from, void *to);

/* A sequence of (role, packed address). */
#define CONVERT_LISTENERS_MAX 16

struct convert_listeners {
    struct core_listen items[CONVERT_LISTENERS_MAX];
    size_t n;
};

int convert_listeners(PyObject *from, void *to);

/* A sequence of ints; cleans up after itself if a later argument is wrong. */
struct convert_numbers {
    uint64_t *items; /* to be freed with PyMem_Free */
    size_t n;
};

int convert_numbers(PyObject *from, void *to);

/* A tuple of bytes, whose items they stay. */
struct convert_texts {
    struct text *items; /* to be freed with PyMem_Free */
    size_t n;
};

int convert_texts(PyObject *from, void *to);

/* A dict with exactly the fields of struct core_config, as ints. */
int convert_config(PyObject *from, void *to);

/* --- results: a new reference, or NULL with an exception set; shapes: _core.pyi */

PyObject *convert_from_addr(const struct addr *addr);
PyObject *convert_from_listener(const struct core_listen *listener);
PyObject *convert_from_question(const struct upcall *question);
PyObject *convert_from_live(const struct core_live *live);
PyObject *convert_from_conn_view(const struct core_conn_view *view);
PyObject *convert_from_tunnel_view(const struct core_tunnel_view *view);

/* The verdict's tag is a PyObject, which must be alive; None if there is none. */
PyObject *convert_from_record(const struct record *record);

/* A tuple of `n` strs, name(0) to name(n - 1). */
PyObject *convert_from_names(const char *(*name)(size_t i), size_t n);

/* A tuple of `n` ints. */
PyObject *convert_from_numbers(const uint64_t *numbers, size_t n);

/* Appends `row`, a new reference or NULL. A row that is missing drops the list. */
void convert_list_add(PyObject **list, PyObject *row);

#endif
