// Linears whose weights are int8, scaled per output, on processors with AVX512_VNNI: twice the products of bfloat16 at
// half the bytes. Inputs are quantized row by row on the way in, by the row's largest number.
//
// The instruction multiplies unsigned by signed bytes, so inputs are shifted by 128 and the shift's share, which
// depends on the weights alone, is taken off the sum.
//
// Legend: N rows, I inputs, O outputs.

// Before the intrinsics: the rest of the extension runs without this instruction.
#pragma GCC target("avx512vnni")

#include "int8.h"

#include <cstring>

#include "tiles.h"

namespace medley {
namespace {

inline __m512i four_of(const uint8_t *x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

// The intrinsic's casts make gcc 12 keep the sums in memory; the instruction itself does not.
inline __v16si add_products(__v16si sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
    return sum;
}

// Sums of ROWS rows by BLOCKS blocks of 16 outputs; `use` is called with row, block and the sum. With FETCHES the
// blocks that lie behind these are brought near meanwhile.
template <int ROWS, int BLOCKS, bool FETCHES, typename Use>
inline void multiply(const uint8_t *x_NI, const int8_t *weight, int64_t num_inputs, Use use) {
    __v16si sum[ROWS][BLOCKS];
    // Unrolled, all of them: a sum picked by a variable would have to lie in memory.
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) sum[row][block] = __v16si{};
    for (int64_t in = 0; in < num_inputs; in += 4) {
        __m512i part[BLOCKS];
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block)
            part[block] = _mm512_loadu_si512(weight + (block * num_inputs + in) * LANES);
        if constexpr (FETCHES)
#pragma GCC unroll 8
            for (int block = 0; block < BLOCKS; ++block)
                _mm_prefetch(weight + ((BLOCKS + block) * num_inputs + in) * LANES, _MM_HINT_T1);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const __m512i four = four_of(x_NI + row * num_inputs + in);
#pragma GCC unroll 8
            for (int block = 0; block < BLOCKS; ++block)
                sum[row][block] = add_products(sum[row][block], four, part[block]);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) use(row, block, reinterpret_cast<__m512i>(sum[row][block]));
}

template <typename T>
struct Linear {
    const uint8_t *x_NI;
    const float *x_scale_N;
    const int8_t *weight;
    const float *scale_O;
    const int32_t *sum_O;
    const T *residual_NO;
    T *y_NO;
    int64_t num_inputs, num_outputs;

    template <int ROWS, int BLOCKS, bool FETCHES>
    void tile(int64_t first, int64_t block) const {
        multiply<ROWS, BLOCKS, FETCHES>(
            x_NI + first * num_inputs, weight + block * num_inputs * LANES, num_inputs,
            [&](int row, int next, __m512i sum) {
                const int64_t out = (block + next) * LANES, at = (first + row) * num_outputs + out;
                sum = _mm512_sub_epi32(sum, _mm512_loadu_si512(sum_O + out));
                const __m512 scale = _mm512_mul_ps(load(scale_O + out), _mm512_set1_ps(x_scale_N[first + row]));
                __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
                if (residual_NO) y = _mm512_add_ps(y, load(residual_NO + at));
                store(y_NO + at, y);
            });
    }
};

// Returns what undoes it. A row that holds NaN or infinity gets NaN, so that its outputs say so.
template <typename T>
float quantize_row(const T *x_I, int64_t num_inputs, uint8_t *to_I) {
    __m512 top = _mm512_setzero_ps();
    __mmask16 is_bad = 0;
    for (int64_t in = 0; in < num_inputs; in += LANES) {
        const __m512 x = _mm512_abs_ps(load(x_I + in));
        is_bad |= _mm512_cmp_ps_mask(x, _mm512_set1_ps(3.4e38f), _CMP_NLE_UQ);
        top = _mm512_max_ps(top, x);
    }
    const float largest = _mm512_reduce_max_ps(top);
    const __m512 factor = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    for (int64_t in = 0; in < num_inputs; in += LANES) {
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(load(x_I + in), factor));
        const __m512i shifted = _mm512_add_epi32(q, _mm512_set1_epi32(128));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to_I + in), _mm512_cvtepi32_epi8(shifted));
    }
    return is_bad ? __builtin_nanf("") : largest / 127.0f;
}

}  // namespace

bool has_int8_products() { return __builtin_cpu_supports("avx512vnni"); }

template <typename T>
void linear_int8(const T *x_NI, const int8_t *weight, const float *scale_O, const int32_t *sum_O, const T *residual_NO,
                 T *y_NO, int64_t num_rows, int64_t num_inputs, int64_t num_outputs) {
    uint8_t *quantized_NI = scratch<uint8_t>(num_rows * num_inputs);
    float *x_scale_N = scratch<float>(num_rows);
    const Linear<T> linear{quantized_NI, x_scale_N, weight, scale_O, sum_O, residual_NO, y_NO, num_inputs, num_outputs};
    share_items(num_rows, ROWS_AT_ONCE, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            x_scale_N[row] = quantize_row(x_NI + row * num_inputs, num_inputs, quantized_NI + row * num_inputs);
    });
    share_tiles(linear, num_rows, num_outputs / LANES);
}

template void linear_int8(const float *, const int8_t *, const float *, const int32_t *, const float *, float *,
                          int64_t, int64_t, int64_t);
template void linear_int8(const bf16 *, const int8_t *, const float *, const int32_t *, const bf16 *, bf16 *, int64_t,
                          int64_t, int64_t);

}  // namespace medley
