/* The compiled half of detkit.evaluation, imported as detkit.evaluation._native.
 *
 * Nothing here is needed: what it offers exists in numpy as well, with the same bits. The work is
 * done in files that know no Python; x_python.c takes the arguments of x.c apart and checks them.
 * A new file adds its functions to PyInit__native and its name to ext-modules in pyproject.toml.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "evaluate_python.h"
#include "resampling_python.h"
#include "scan_python.h"

/* Counts with every change of what a function takes: a build from another day is not used. */
enum { INTERFACE = 5 };

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "detkit.evaluation._native",
    .m_doc = "The COCO evaluation in C; see detkit.evaluation.backend.",
    .m_size = 0,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyMethodDef *tables[] = {evaluate_functions, scan_functions, resampling_functions};
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof tables / sizeof *tables; i++)
        if (PyModule_AddFunctions(module, tables[i]) < 0)
            Py_CLEAR(module);
    if (module && PyModule_AddIntMacro(module, INTERFACE) < 0)
        Py_CLEAR(module);
    return module;
}
