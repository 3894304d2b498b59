// Linears of int8 weights and inputs (AVX512_VNNI); see int8.cpp. The caller asks has_int8_products() first.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace medley {

bool has_int8_products();

// y = x W, plus the residual where it is not null. W lies in blocks of 16 outputs, four inputs side by side,
// (O / 16, I / 4, 16, 4); scale_O undoes its quantization, sum_O is 128 times the sum of each output's weights.
template <typename T>
void linear_int8(const T *x_NI, const int8_t *weight, const float *scale_O, const int32_t *sum_O, const T *residual_NO,
                 T *y_NO, int64_t num_rows, int64_t num_inputs, int64_t num_outputs);

}  // namespace medley
