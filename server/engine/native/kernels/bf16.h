// Kernels that multiply bfloat16 pairs (AVX512_BF16); see bf16.cpp. The caller asks has_bf16_products() first.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace medley {

bool has_bf16_products();

// y = x W, plus the residual where it is not null. W lies in blocks of 16 outputs, pairs of inputs side by side:
// (O / 16, I / 2, 16, 2).
void linear_bf16(const bf16 *x_NI, const bf16 *weight, const bf16 *residual_NO, bf16 *y_NO, int64_t num_rows,
                 int64_t num_inputs, int64_t num_outputs);

// Each row of a packed encoder input attends to itself. `first_B` holds the first token of each row and the total; the
// bias lies by distance of key from query, `bias_stride` a head, distance 0 at `bias_zero`.
void encoder_attention_bf16(const bf16 *qkv_T3HK, const int64_t *first_B, int64_t num_rows, const float *bias_HN,
                            int64_t bias_stride, int64_t bias_zero, bf16 *y_THK, int64_t num_heads,
                            int64_t head_width);

}  // namespace medley
