#ifndef DETKIT_SCAN_PYTHON_H
#define DETKIT_SCAN_PYTHON_H

#include <Python.h>

extern PyMethodDef scan_functions[];

#endif
