// The Python face of the kernels: takes addresses and sizes, calls without holding the interpreter. `cpu.py` holds the
// tensors and is the only caller.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <type_traits>

#include "int8.h"
#include "linears.h"
#include "pack.h"
#include "pool.h"
#include "step.h"

namespace {

using namespace medley;

template <typename T>
T *address(PyObject *number) {
    return static_cast<T *>(PyLong_AsVoidPtr(number));
}

int64_t integer(PyObject *number) { return PyLong_AsLongLong(number); }

// Runs `call` for float32 or bfloat16 without holding the interpreter, so that adapters can load meanwhile.
template <typename Call>
PyObject *run(PyObject *is_bf16, Call call) {
    const bool narrow = PyObject_IsTrue(is_bf16);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS if (narrow) call(bf16{});
    else call(float{});
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

// Calls with the head width as a constant; `cpu.py` offers no other.
template <typename Call>
void with_head_width(int64_t head_width, Call call) {
    if (head_width == 32) call(std::integral_constant<int64_t, 32>{});
    if (head_width == 64) call(std::integral_constant<int64_t, 64>{});
    if (head_width == 128) call(std::integral_constant<int64_t, 128>{});
}

PyObject *py_rms_norm(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *x = address<void>(args[1]), *gamma = address<void>(args[2]), *y = address<void>(args[3]);
    const int64_t num_rows = integer(args[4]), width = integer(args[5]);
    const auto eps = static_cast<float>(PyFloat_AsDouble(args[6]));
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        rms_norm(static_cast<const T *>(x), static_cast<const T *>(gamma), static_cast<T *>(y), num_rows, width, eps);
    });
}

PyObject *py_gated_gelu(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *h = address<void>(args[1]), *y = address<void>(args[2]);
    const int64_t num_rows = integer(args[3]), width = integer(args[4]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        gated_gelu(static_cast<const T *>(h), static_cast<T *>(y), num_rows, width);
    });
}

PyObject *py_self_attention(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *qkv = address<void>(args[1]), *keys = address<void>(args[2]), *values = address<void>(args[3]);
    const auto *bias = address<float>(args[4]);
    const int64_t bias_stride = integer(args[5]);
    const auto *position = address<int64_t>(args[6]);
    auto *y = address<void>(args[7]);
    const CacheShape shape{integer(args[8]), integer(args[9]), integer(args[10]), integer(args[11])};
    const int64_t head_width = integer(args[12]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        with_head_width(head_width, [=](auto width) {
            self_attention<T, decltype(width)::value>(static_cast<const T *>(qkv), static_cast<T *>(keys),
                                                      static_cast<T *>(values), bias, bias_stride, position,
                                                      static_cast<T *>(y), shape);
        });
    });
}

PyObject *py_cross_attention(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *q = address<void>(args[1]), *keys = address<void>(args[2]), *values = address<void>(args[3]);
    const auto *length = address<int64_t>(args[4]);
    auto *y = address<void>(args[5]);
    const CacheShape shape{integer(args[6]), integer(args[7]), integer(args[8]), integer(args[9])};
    const int64_t head_width = integer(args[10]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        with_head_width(head_width, [=](auto width) {
            cross_attention<T, decltype(width)::value>(static_cast<const T *>(q), static_cast<const T *>(keys),
                                                       static_cast<const T *>(values), length, static_cast<T *>(y),
                                                       shape);
        });
    });
}

PyObject *py_add_lora(PyObject *, PyObject *const *args, Py_ssize_t) {
    const auto *site = address<int64_t>(args[1]);
    const int64_t num_rows = integer(args[2]);
    auto *x = address<void>(args[3]);
    const int64_t in_width = integer(args[4]);
    auto *y = address<void>(args[5]);
    const int64_t out_width = integer(args[6]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        add_lora(site, num_rows, static_cast<const T *>(x), in_width, static_cast<T *>(y), out_width);
    });
}

PyObject *py_add_packed_lora(PyObject *, PyObject *const *args, Py_ssize_t) {
    const int64_t lora = integer(args[1]), first_row = integer(args[2]), num_rows = integer(args[3]);
    auto *x = address<void>(args[4]);
    const int64_t num_inputs = integer(args[5]);
    auto *y = address<void>(args[6]);
    const int64_t num_outputs = integer(args[7]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        add_packed_lora(lora, first_row, num_rows, static_cast<const T *>(x), num_inputs, static_cast<T *>(y),
                        num_outputs);
    });
}

PyObject *py_argmax(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *logits = address<void>(args[1]);
    auto *token = address<int64_t>(args[2]);
    const int64_t num_rows = integer(args[3]), size = integer(args[4]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        argmax(static_cast<const T *>(logits), token, num_rows, size);
    });
}

PyObject *py_linear(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *x = address<void>(args[1]), *weight = address<void>(args[2]), *residual = address<void>(args[3]);
    auto *y = address<void>(args[4]);
    const int64_t num_rows = integer(args[5]), num_inputs = integer(args[6]), num_outputs = integer(args[7]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        linear(static_cast<const T *>(x), static_cast<const T *>(weight), static_cast<const T *>(residual),
               static_cast<T *>(y), num_rows, num_inputs, num_outputs);
    });
}

PyObject *py_encoder_attention(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *qkv = address<void>(args[1]);
    const PackedRows rows{address<int64_t>(args[2]), integer(args[3]), address<float>(args[4]), integer(args[5]),
                          integer(args[6]),          integer(args[7]), integer(args[8])};
    auto *y = address<void>(args[9]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        encoder_attention(static_cast<const T *>(qkv), rows, static_cast<T *>(y));
    });
}

PyObject *py_linear_int8(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *x = address<void>(args[1]);
    const auto *weight = address<int8_t>(args[2]);
    const auto *scale = address<float>(args[3]);
    const auto *sum = address<int32_t>(args[4]);
    auto *residual = address<void>(args[5]), *y = address<void>(args[6]);
    const int64_t num_rows = integer(args[7]), num_inputs = integer(args[8]), num_outputs = integer(args[9]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        linear_int8(static_cast<const T *>(x), weight, scale, sum, static_cast<const T *>(residual),
                    static_cast<T *>(y), num_rows, num_inputs, num_outputs);
    });
}

PyObject *py_pack(PyObject *, PyObject *const *args, Py_ssize_t) {
    auto *source = address<void>(args[1]), *packed = address<void>(args[2]);
    const int64_t num_outputs = integer(args[3]), num_inputs = integer(args[4]);
    const int64_t output_stride = integer(args[5]), input_stride = integer(args[6]);
    return run(args[0], [=](auto kind) {
        using T = decltype(kind);
        constexpr int64_t STEP = sizeof(T) == 2 ? 2 : 1;
        pack<STEP>(static_cast<const T *>(source), num_outputs, num_inputs, output_stride, input_stride,
                   static_cast<T *>(packed));
    });
}

PyObject *py_set_num_threads(PyObject *, PyObject *const *args, Py_ssize_t) {
    const int64_t count = integer(args[0]);
    if (PyErr_Occurred()) return nullptr;
    set_num_threads(count);
    Py_RETURN_NONE;
}

PyObject *py_has_int8_products(PyObject *, PyObject *const *, Py_ssize_t) {
    return PyBool_FromLong(has_int8_products());
}

PyObject *py_has_bf16_products(PyObject *, PyObject *const *, Py_ssize_t) {
    return PyBool_FromLong(has_bf16_products());
}

template <PyObject *(*FUNCTION)(PyObject *, PyObject *const *, Py_ssize_t), Py_ssize_t NUM_ARGS>
PyObject *checked(PyObject *module, PyObject *const *args, Py_ssize_t num_args) {
    if (num_args != NUM_ARGS) return PyErr_Format(PyExc_TypeError, "%zd arguments expected", NUM_ARGS);
    return FUNCTION(module, args, num_args);
}

#define METHOD(name, num_args)                                                                                        \
    {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(checked<py_##name, num_args>)), METH_FASTCALL, \
     nullptr}

PyMethodDef methods[] = {
    METHOD(rms_norm, 7),
    METHOD(gated_gelu, 5),
    METHOD(self_attention, 13),
    METHOD(cross_attention, 11),
    METHOD(add_packed_lora, 8),
    METHOD(add_lora, 7),
    METHOD(argmax, 5),
    METHOD(linear, 8),
    METHOD(encoder_attention, 10),
    METHOD(has_bf16_products, 0),
    METHOD(linear_int8, 10),
    METHOD(has_int8_products, 0),
    METHOD(pack, 7),
    METHOD(set_num_threads, 1),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", "The decode step's small kernels; see cpu.py.", -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
