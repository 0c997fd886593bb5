/* SPDX-License-Identifier: Apache-2.0 */
/* The extension `ztunnel_py.core._core`: its type and its constants. */
#include <nghttp2/nghttp2.h>
#include <openssl/crypto.h>

#include "convert.h"
#include "module.h"

static const char *event_name(size_t i) {
    return stats_event_name((enum stats_event)i);
}

static const char *kind_name(size_t i) {
    return mem_kind_name((enum mem_kind)i);
}

/* Adds an attribute and drops the reference to its value. False with an exception set. */
static bool add(PyObject *module, const char *attribute, PyObject *value) {
    bool is_added = value != NULL && PyModule_AddObjectRef(module, attribute, value) == 0;
    Py_XDECREF(value);
    return is_added;
}

static int fill_module(PyObject *module) {
    const char *openssl = OpenSSL_version(OPENSSL_VERSION);
    const char *nghttp2 = nghttp2_version(0)->version_str;
    bool is_filled =
        add(module, "Core", PyType_FromModuleAndSpec(module, &module_core_spec, NULL)) &&
        add(module, "ALL", PyLong_FromUnsignedLong(CORE_ALL)) &&
        add(module, "COLUMNS", PyLong_FromLong(STATS_COLUMNS)) &&
        add(module, "SLOTS_MAX", PyLong_FromLong(STATS_SLOTS_MAX)) &&
        add(module, "EVENTS", convert_from_names(event_name, STATS_EVENTS)) &&
        add(module, "KINDS", convert_from_names(kind_name, MEM_KINDS)) &&
        add(module, "OPENSSL", PyUnicode_FromString(openssl)) &&
        add(module, "NGHTTP2", PyUnicode_FromString(nghttp2));
    return is_filled ? 0 : -1;
}

static PyModuleDef_Slot MODULE_SLOTS[] = {{Py_mod_exec, (void *)fill_module}, {0}};

static PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ztunnel_py.core._core",
    .m_doc = "The C core, as it is.",
    .m_slots = MODULE_SLOTS,
};

PyMODINIT_FUNC PyInit__core(void); /* its only caller looks it up by name */

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&MODULE);
}
