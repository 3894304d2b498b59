// Products of float32.

#include "linears.h"
#include "products.h"

namespace medley {
namespace {

struct Singles {
    using Number = float;
    using Operand = __m512;
    static constexpr int64_t STEP = 1;

    static Operand input(const float *x) { return _mm512_set1_ps(*x); }
    static Operand block(const float *weight) { return _mm512_loadu_ps(weight); }
    static __m512 add(__m512 sum, Operand block, Operand input) { return _mm512_fmadd_ps(block, input, sum); }
};

}  // namespace

void linear(const float *x_NI, const float *weight, const float *residual_NO, float *y_NO, int64_t num_rows,
            int64_t num_inputs, int64_t num_outputs) {
    run_linear(Linear<Singles>{x_NI, weight, residual_NO, y_NO, num_inputs, num_outputs}, num_rows);
}

void add_packed_lora(int64_t lora, int64_t first_row, int64_t num_rows, const float *x_NI, int64_t num_inputs,
                     float *y_NO, int64_t num_outputs) {
    const auto &packed = *reinterpret_cast<const PackedLora *>(lora);
    run_lora(LoraRows<Singles>{packed, x_NI, num_inputs, y_NO, num_outputs}, first_row, num_rows);
}

void encoder_attention(const float *qkv_T3HK, const PackedRows &rows, float *y_THK) {
    run_attention(EncoderAttention<Singles>{qkv_T3HK, rows.first_B, rows.bias_HN, rows.bias_stride, rows.bias_zero,
                                            y_THK, rows.num_heads, rows.head_width},
                  rows.num_rows);
}

}  // namespace medley
