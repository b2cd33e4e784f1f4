#ifndef DETKIT_EVALUATE_H
#define DETKIT_EVALUATE_H

#include <Python.h>

extern PyMethodDef evaluate_functions[];

#endif
