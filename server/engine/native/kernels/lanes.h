// Sixteen float32 numbers at a time, whatever the type in memory. Included by the kernels; needs AVX-512 (x86-64-v4).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <vector>

namespace medley {

constexpr int64_t LANES = 16;
struct bf16 {
    uint16_t bits;
};

inline __m512 load(const float *from) { return _mm512_loadu_ps(from); }
inline __m512 load(const bf16 *from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void store(float *to, __m512 value) { _mm512_storeu_ps(to, value); }
// Rounds to nearest even; a NaN keeps its upper bits, among them the one that makes it quiet.
inline void store(bf16 *to, __m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi32_epi16(chosen));
}

// e^x to float32's precision: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; NaN stays NaN.
inline __m512 exp512(__m512 x) {
    const __m512 low = _mm512_set1_ps(-104.0f), high = _mm512_set1_ps(88.8f);
    // The operand order matters: min and max return the second operand when one is NaN.
    x = _mm512_min_ps(high, _mm512_max_ps(low, x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    return _mm512_scalef_ps(p, n);
}

inline int64_t whole_lanes(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

// This thread's scratch of at least that many numbers; it grows and stays. A kernel that needs two of a type numbers
// them.
template <typename T>
T *scratch(int64_t size, int which = 0) {
    thread_local std::vector<T> kept[2];
    if (static_cast<int64_t>(kept[which].size()) < size) kept[which].resize(size);
    return kept[which].data();
}

}  // namespace medley
