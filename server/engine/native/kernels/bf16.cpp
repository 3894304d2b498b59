// Products of bfloat16, in pairs, on processors with AVX512_BF16.

// Before the intrinsics: the rest of the extension runs without this instruction.
#pragma GCC target("avx512bf16")

#include "linears.h"
#include "products.h"

namespace medley {
namespace {

struct Pairs {
    using Number = bf16;
    using Operand = __m512bh;
    static constexpr int64_t STEP = 2;

    static Operand input(const bf16 *x) {
        int32_t both;
        std::memcpy(&both, x, sizeof both);
        return reinterpret_cast<Operand>(_mm512_set1_epi32(both));
    }
    static Operand block(const bf16 *weight) { return reinterpret_cast<Operand>(_mm512_loadu_si512(weight)); }
    static __m512 add(__m512 sum, Operand block, Operand input) { return _mm512_dpbf16_ps(sum, block, input); }
};

}  // namespace

bool has_bf16_products() { return __builtin_cpu_supports("avx512bf16"); }

void linear(const bf16 *x_NI, const bf16 *weight, const bf16 *residual_NO, bf16 *y_NO, int64_t num_rows,
            int64_t num_inputs, int64_t num_outputs) {
    run_linear(Linear<Pairs>{x_NI, weight, residual_NO, y_NO, num_inputs, num_outputs}, num_rows);
}

void add_packed_lora(int64_t lora, int64_t first_row, int64_t num_rows, const bf16 *x_NI, int64_t num_inputs,
                     bf16 *y_NO, int64_t num_outputs) {
    const auto &packed = *reinterpret_cast<const PackedLora *>(lora);
    run_lora(LoraRows<Pairs>{packed, x_NI, num_inputs, y_NO, num_outputs}, first_row, num_rows);
}

void encoder_attention(const bf16 *qkv_T3HK, const PackedRows &rows, bf16 *y_THK) {
    run_attention(EncoderAttention<Pairs>{qkv_T3HK, rows.first_B, rows.bias_HN, rows.bias_stride, rows.bias_zero, y_THK,
                                          rows.num_heads, rows.head_width},
                  rows.num_rows);
}

}  // namespace medley
