// Linears and the encoder's attention for each type of number; see products.h. The caller of the bfloat16 ones asks
// has_bf16_products() first.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace medley {

bool has_bf16_products();

// y = x W, plus the residual where it is not null; W packed as products.h says, bfloat16 in pairs, float32 singly.
void linear(const bf16 *x_NI, const bf16 *weight, const bf16 *residual_NO, bf16 *y_NO, int64_t num_rows,
            int64_t num_inputs, int64_t num_outputs);
void linear(const float *x_NI, const float *weight, const float *residual_NO, float *y_NO, int64_t num_rows,
            int64_t num_inputs, int64_t num_outputs);

// Adds B (A x) of one adapter, packed at this address (products.h), to `num_rows` rows from `first_row` on.
void add_packed_lora(int64_t lora, int64_t first_row, int64_t num_rows, const bf16 *x_NI, int64_t num_inputs,
                     bf16 *y_NO, int64_t num_outputs);
void add_packed_lora(int64_t lora, int64_t first_row, int64_t num_rows, const float *x_NI, int64_t num_inputs,
                     float *y_NO, int64_t num_outputs);

// Where the rows of a packed encoder input lie, and their bias: `first_B` holds the first token of each row and the
// total; the bias lies by distance of key from query, `bias_stride` a head, distance 0 at `bias_zero`.
struct PackedRows {
    const int64_t *first_B;
    int64_t num_rows;
    const float *bias_HN;
    int64_t bias_stride, bias_zero;
    int64_t num_heads, head_width;
};

// Each row attends to itself.
void encoder_attention(const bf16 *qkv_T3HK, const PackedRows &rows, bf16 *y_THK);
void encoder_attention(const float *qkv_T3HK, const PackedRows &rows, float *y_THK);

}  // namespace medley
