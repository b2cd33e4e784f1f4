#ifndef DETKIT_RESAMPLING_PYTHON_H
#define DETKIT_RESAMPLING_PYTHON_H

#include <Python.h>

extern PyMethodDef resampling_functions[];

#endif
