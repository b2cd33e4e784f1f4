#define PY_SSIZE_T_CLEAN
#include "evaluate.h"

#include <float.h>

#if FLT_EVAL_METHOD != 0
#error "intermediate results are wider than double, so that the last bits would differ"
#endif

static PyObject *curves_per_block(PyObject *module, PyObject *none)
{
    (void)module, (void)none;
    return PyLong_FromLong(64);
}

PyMethodDef evaluate_functions[] = {
    {"curves_per_block", curves_per_block, METH_NOARGS, "How many curves one pass handles."},
    {NULL, NULL, 0, NULL},
};
