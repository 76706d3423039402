/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The part of Python's stable ABI (PEP 384) that calls.c uses, so that a C compiler is all it
 * needs: Python's own headers are a package of their own, which few machines have. Holds for every
 * CPython from 3.10 on with a global interpreter lock; bpfunit/_native/__init__.py asks for that.
 *
 * Source: docs.python.org/3/c-api/stable.html, and Include/ of CPython for the layouts.
 */
#ifndef BPFUNIT_PYTHON_ABI_H
#define BPFUNIT_PYTHON_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef ssize_t Py_ssize_t;

typedef struct type_object PyTypeObject;

typedef struct object {
	Py_ssize_t ob_refcnt;
	PyTypeObject *ob_type;
} PyObject;

typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);

typedef struct {
	const char *ml_name;
	PyCFunction ml_meth;
	int ml_flags;
	const char *ml_doc;
} PyMethodDef;

typedef struct {
	PyObject ob_base;
	PyObject *(*m_init)(void);
	Py_ssize_t m_index;
	PyObject *m_copy;
	const char *m_name;
	const char *m_doc;
	Py_ssize_t m_size;
	PyMethodDef *m_methods;
	void *m_slots;
	void *m_traverse, *m_clear, *m_free;
} PyModuleDef;

#define METH_O 0x0008
#define METH_FASTCALL 0x0080
#define PYTHON_ABI_VERSION 3

extern PyObject _Py_NoneStruct, _Py_TrueStruct, _Py_FalseStruct;
extern PyTypeObject PyBytes_Type, PyDict_Type, PyFloat_Type, PyList_Type, PyLong_Type;
extern PyTypeObject PyTuple_Type, PyUnicode_Type;
extern PyObject *PyExc_TypeError;

#define Py_None (&_Py_NoneStruct)
#define Py_True (&_Py_TrueStruct)
#define Py_False (&_Py_FalseStruct)
#define IS_A(object, type) ((object)->ob_type == &Py##type##_Type)

void Py_DecRef(PyObject *);
void Py_IncRef(PyObject *);
void *PyEval_SaveThread(void);
void PyEval_RestoreThread(void *);

PyObject *PyModule_Create2(PyModuleDef *, int version);
void PyErr_Clear(void);
PyObject *PyErr_NoMemory(void);
PyObject *PyErr_Occurred(void);
void PyErr_SetString(PyObject *, const char *);
PyObject *PyObject_GetAttrString(PyObject *, const char *);
PyObject *PyObject_Str(PyObject *);

PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t);
char *PyBytes_AsString(PyObject *);
int PyBytes_AsStringAndSize(PyObject *, char **, Py_ssize_t *);
Py_ssize_t PyBytes_Size(PyObject *);
const char *PyUnicode_AsUTF8AndSize(PyObject *, Py_ssize_t *);
double PyFloat_AsDouble(PyObject *);

long PyLong_AsLong(PyObject *);
long long PyLong_AsLongLongAndOverflow(PyObject *, int *);
Py_ssize_t PyLong_AsSsize_t(PyObject *);
unsigned long PyLong_AsUnsignedLong(PyObject *);
unsigned long long PyLong_AsUnsignedLongLong(PyObject *);
void *PyLong_AsVoidPtr(PyObject *);
PyObject *PyLong_FromLong(long);

PyObject *PyDict_GetItemWithError(PyObject *, PyObject *);
int PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **);
Py_ssize_t PyDict_Size(PyObject *);
PyObject *PyList_GetItem(PyObject *, Py_ssize_t);
Py_ssize_t PyList_Size(PyObject *);
PyObject *PyList_New(Py_ssize_t);
int PyList_Append(PyObject *, PyObject *);
PyObject *PyTuple_GetItem(PyObject *, Py_ssize_t);
Py_ssize_t PyTuple_Size(PyObject *);
PyObject *Py_BuildValue(const char *, ...);

#endif
