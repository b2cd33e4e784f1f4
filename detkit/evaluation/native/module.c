/* The compiled half of detkit.evaluation, imported as detkit.evaluation._native.
 *
 * Nothing here is needed: what it offers exists in numpy as well, with the same bits. The functions
 * live in files of their own, each with a table of them; a new file adds its table below and its
 * name to ext-modules in pyproject.toml.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "evaluate.h"

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "detkit.evaluation._native",
    .m_doc = "The COCO evaluation in C; see detkit.evaluation.backend.",
    .m_size = 0,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyMethodDef *tables[] = {evaluate_functions};
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof tables / sizeof *tables; i++)
        if (PyModule_AddFunctions(module, tables[i]) < 0)
            Py_CLEAR(module);
    return module;
}
