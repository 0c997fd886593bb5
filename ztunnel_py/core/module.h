/* SPDX-License-Identifier: Apache-2.0 */
/* The binding's one type. */
#ifndef ZT_MODULE_H
#define ZT_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyType_Spec module_core_spec;

#endif
