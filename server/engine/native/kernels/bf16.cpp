// Products of bfloat16 pairs on processors with AVX512_BF16: the decode step's linears, the encoder's attention.
//
// A decode step multiplies few rows by many weights. Each block of 16 outputs is read once, in order, against up to 16
// rows whose sums stay in registers; torch's own product, made for many rows, reaches about two thirds of the speed.
// Attention of a packed encoder row is two such products with a softmax between, for 16 queries at a time: no padding,
// no mask, and a bias of one number per distance instead of one per pair.
//
// Legend: N rows, T tokens, I inputs, O outputs, H heads, K head width, L tokens of a row.

// Before the intrinsics: the rest of the extension runs without this instruction.
#pragma GCC target("avx512bf16")

#include "bf16.h"

#include <cmath>
#include <cstring>

#include "tiles.h"

namespace medley {
namespace {

// Queries that attend at once, the most.
constexpr int64_t TILE = 16;

inline __m512bh pair_of(const bf16 *x) {
    int32_t both;
    std::memcpy(&both, x, sizeof both);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

inline __m512bh block_of(const bf16 *weight) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(weight)); }

// Sums of ROWS rows by BLOCKS blocks of 16 outputs; `use` is called with row, block and the sum.
template <int ROWS, int BLOCKS, typename Use>
inline void multiply(const bf16 *x, int64_t x_stride, const bf16 *weight, int64_t num_inputs, Use use) {
    __m512 sum[ROWS][BLOCKS];
    // Unrolled, all of them: a sum picked by a variable would have to lie in memory.
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) sum[row][block] = _mm512_setzero_ps();
    for (int64_t in = 0; in < num_inputs; in += 2) {
        __m512bh part[BLOCKS];
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) part[block] = block_of(weight + (block * num_inputs + in) * LANES);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row) {
            const __m512bh pair = pair_of(x + row * x_stride + in);
#pragma GCC unroll 8
            for (int block = 0; block < BLOCKS; ++block) sum[row][block] = _mm512_dpbf16_ps(sum[row][block], part[block], pair);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) use(row, block, sum[row][block]);
}

struct Linear {
    const bf16 *x_NI, *weight, *residual_NO;
    bf16 *y_NO;
    int64_t num_inputs, num_outputs;

    template <int ROWS, int BLOCKS>
    void tile(int64_t first, int64_t block) const {
        const int64_t corner = first * num_outputs + block * LANES;
        multiply<ROWS, BLOCKS>(x_NI + first * num_inputs, num_inputs, weight + block * num_inputs * LANES, num_inputs,
                               [&](int row, int next, __m512 sum) {
                                   const int64_t at = corner + row * num_outputs + next * LANES;
                                   if (residual_NO) sum = _mm512_add_ps(sum, load(residual_NO + at));
                                   store(y_NO + at, sum);
                               });
    }
};

// Pairs of keys side by side, 16 keys a block, as the products want their second operand; zeros beyond the row.
void pack_keys(const bf16 *k_LK, int64_t stride, int64_t num_tokens, int64_t width, bf16 *packed) {
    for (int64_t token = 0; token < whole_lanes(num_tokens); ++token)
        for (int64_t at = 0; at < width; at += 2) {
            bf16 *to = packed + (token / LANES * width + at) * LANES + token % LANES * 2;
            if (token < num_tokens)
                std::memcpy(to, k_LK + token * stride + at, 2 * sizeof(bf16));
            else
                std::memset(to, 0, 2 * sizeof(bf16));
        }
}

void pack_values(const bf16 *v_LK, int64_t stride, int64_t num_tokens, int64_t width, bf16 *packed) {
    const int64_t num_inputs = whole_lanes(num_tokens);
    for (int64_t token = 0; token < num_inputs; ++token)
        for (int64_t at = 0; at < width; ++at) {
            bf16 *to = packed + (at / LANES * num_inputs + token / 2 * 2) * LANES + at % LANES * 2 + token % 2;
            *to = token < num_tokens ? v_LK[token * stride + at] : bf16{0};
        }
}

// Scores to weights, in place as bfloat16; returns one over their sum.
float soften(float *score_L, const float *bias_L, int64_t num_tokens, bf16 *weight_L) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int64_t at = 0; at < num_tokens; at += LANES) {
        const int64_t left = num_tokens - at;
        const __mmask16 mask = left < LANES ? (1u << left) - 1 : 0xffff;
        const __m512 score = _mm512_add_ps(load(score_L + at), _mm512_maskz_loadu_ps(mask, bias_L + at));
        const __m512 own = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, score);
        store(score_L + at, own);
        top = _mm512_max_ps(top, own);
    }
    const __m512 top_512 = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    __m512 total = _mm512_setzero_ps();
    for (int64_t at = 0; at < num_tokens; at += LANES) {
        const __m512 weight = exp512(_mm512_sub_ps(load(score_L + at), top_512));
        store(weight_L + at, weight);
        total = _mm512_add_ps(total, weight);
    }
    return 1.0f / _mm512_reduce_add_ps(total);
}

template <int ROWS>
void attend_tile(const bf16 *q_LK, int64_t stride, const bf16 *keys, const bf16 *values, const float *bias,
                 int64_t num_tokens, int64_t width, float *score, bf16 *weight, bf16 *y_LK, int64_t y_stride) {
    const int64_t padded = whole_lanes(num_tokens);
    for (int64_t block = 0; block < padded / LANES; ++block)
        multiply<ROWS, 1>(q_LK, stride, keys + block * width * LANES, width,
                          [&](int row, int, __m512 sum) { store(score + row * padded + block * LANES, sum); });
    float share[ROWS];
    for (int row = 0; row < ROWS; ++row)
        share[row] = soften(score + row * padded, bias - row, num_tokens, weight + row * padded);
    for (int64_t block = 0; block < width / LANES; ++block)
        multiply<ROWS, 1>(weight, padded, values + block * padded * LANES, padded, [&](int row, int, __m512 sum) {
            store(y_LK + row * y_stride + block * LANES, _mm512_mul_ps(sum, _mm512_set1_ps(share[row])));
        });
}

}  // namespace

bool has_bf16_products() { return __builtin_cpu_supports("avx512bf16"); }

void linear_bf16(const bf16 *x_NI, const bf16 *weight, const bf16 *residual_NO, bf16 *y_NO, int64_t num_rows,
                 int64_t num_inputs, int64_t num_outputs) {
    const Linear linear{x_NI, weight, residual_NO, y_NO, num_inputs, num_outputs};
#pragma omp parallel
    share_tiles(linear, num_rows, num_outputs / LANES);
}

void encoder_attention_bf16(const bf16 *qkv_T3HK, const int64_t *first_B, int64_t num_rows, const float *bias_HN,
                            int64_t bias_stride, int64_t bias_zero, bf16 *y_THK, int64_t num_heads,
                            int64_t head_width) {
    const int64_t y_stride = num_heads * head_width, stride = 3 * y_stride;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t head = 0; head < num_heads; ++head) {
            const int64_t num_tokens = first_B[row + 1] - first_B[row], padded = whole_lanes(num_tokens);
            const bf16 *q_LK = qkv_T3HK + first_B[row] * stride + head * head_width;
            bf16 *keys = scratch<bf16>((2 * head_width + TILE) * padded), *values = keys + head_width * padded;
            bf16 *weight = values + head_width * padded;
            float *score = scratch<float>(TILE * padded);
            pack_keys(q_LK + y_stride, stride, num_tokens, head_width, keys);
            pack_values(q_LK + 2 * y_stride, stride, num_tokens, head_width, values);
            const float *bias = bias_HN + head * bias_stride + bias_zero;
            bf16 *y_LK = y_THK + first_B[row] * y_stride + head * head_width;
            for (int64_t at = 0; at < num_tokens;) {
                const int64_t left = num_tokens - at;
                const auto attend = left >= 16 ? attend_tile<16> : left >= 8 ? attend_tile<8> : left >= 4 ? attend_tile<4> : attend_tile<1>;
                attend(q_LK + at * stride, stride, keys, values, bias - at, num_tokens, head_width, score, weight,
                       y_LK + at * y_stride, y_stride);
                at += left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : 1;
            }
        }
}

}  // namespace medley
