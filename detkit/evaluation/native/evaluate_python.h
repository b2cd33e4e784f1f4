#ifndef DETKIT_EVALUATE_PYTHON_H
#define DETKIT_EVALUATE_PYTHON_H

#include <Python.h>

extern PyMethodDef evaluate_functions[];

#endif
