// The decode step's small kernels for x86-64 with AVX-512: norm, gated GELU, attention of one token, LoRA by row,
// argmax.
//
// Between two matrix products of a decode step lie many small operations; as one torch call each they cost more than
// the work they do. Each function here is one such stretch: it reads every number once, in the serving type (float32 or
// bfloat16), computes in float32 and shares its rows with the threads of pool.h. Nothing is allocated per call beyond a
// thread's scratch, which grows and stays. The matrix products beside them are in products.h and int8.cpp.
//
// Legend: B rows, N rows or tokens, D width, H heads, K head width, L positions, F feed-forward width, R rank.
#pragma once

#include <cstring>

#include "lanes.h"
#include "pool.h"

namespace medley {

// Numbers, and heads of a short past, below which one thread is done before another has heard of it.
constexpr int64_t WORTH_SHARING = 1 << 13;
constexpr int64_t HEADS_AT_ONCE = 4;

int64_t fewest_rows(int64_t width) { return (WORTH_SHARING + width - 1) / width; }

template <typename T>
float dot(const T *a, const T *b, int64_t size) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t at = 0;
    for (; at + 2 * LANES <= size; at += 2 * LANES) {
        even = _mm512_fmadd_ps(load(a + at), load(b + at), even);
        odd = _mm512_fmadd_ps(load(a + at + LANES), load(b + at + LANES), odd);
    }
    if (at < size) even = _mm512_fmadd_ps(load(a + at), load(b + at), even);
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

template <typename T>
void rms_norm(const T *x_ND, const T *gamma_D, T *y_ND, int64_t num_rows, int64_t width, float eps) {
    share_items(num_rows, fewest_rows(width), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const T *x_D = x_ND + row * width;
            T *y_D = y_ND + row * width;
            const float scale = 1.0f / __builtin_sqrtf(dot(x_D, x_D, width) / static_cast<float>(width) + eps);
            const __m512 scale_512 = _mm512_set1_ps(scale);
            for (int64_t at = 0; at < width; at += LANES)
                store(y_D + at, _mm512_mul_ps(_mm512_mul_ps(load(x_D + at), scale_512), load(gamma_D + at)));
        }
    });
}

// gelu(gate) * linear, with the tanh form of GELU written as gate * sigmoid(2u).
template <typename T>
void gated_gelu(const T *h_N2F, T *y_NF, int64_t num_rows, int64_t width) {
    const __m512 one = _mm512_set1_ps(1.0f), cubic = _mm512_set1_ps(0.044715f);
    const __m512 minus_two_c = _mm512_set1_ps(-2.0f * 0.7978845608028654f);
    share_items(num_rows, fewest_rows(width), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const T *gate_F = h_N2F + row * 2 * width, *linear_F = gate_F + width;
            T *y_F = y_NF + row * width;
            for (int64_t at = 0; at < width; at += LANES) {
                const __m512 g = load(gate_F + at);
                const __m512 inner = _mm512_mul_ps(g, _mm512_fmadd_ps(_mm512_mul_ps(g, g), cubic, one));
                const __m512 sigmoid =
                    _mm512_div_ps(one, _mm512_add_ps(one, exp512(_mm512_mul_ps(inner, minus_two_c))));
                store(y_F + at, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), load(linear_F + at)));
            }
        }
    });
}

// One query against the first num_positions keys and values of one head. `score_L` is scratch, padded to whole lanes.
template <typename T, int64_t K>
void attend(const T *q_K, const T *k_LK, const T *v_LK, const float *bias_L, int64_t num_positions, float *score_L,
            T *y_K) {
    constexpr int64_t PARTS = K / LANES;
    __m512 q[PARTS];
    for (int64_t part = 0; part < PARTS; ++part) q[part] = load(q_K + part * LANES);
    for (int64_t at = 0; at < num_positions; ++at) {
        __m512 sum = _mm512_mul_ps(q[0], load(k_LK + at * K));
        for (int64_t part = 1; part < PARTS; ++part)
            sum = _mm512_fmadd_ps(q[part], load(k_LK + at * K + part * LANES), sum);
        score_L[at] = _mm512_reduce_add_ps(sum);
    }
    for (int64_t at = num_positions; at % LANES; ++at) score_L[at] = -__builtin_inff();
    __m512 top = _mm512_set1_ps(-__builtin_inff());
    for (int64_t at = 0; at < num_positions; at += LANES) {
        __m512 score = load(score_L + at);
        if (bias_L) {
            const int64_t left = num_positions - at;
            const __mmask16 mask = left < LANES ? (1u << left) - 1 : 0xffff;
            score = _mm512_mask_add_ps(score, mask, score, _mm512_maskz_loadu_ps(mask, bias_L + at));
            store(score_L + at, score);
        }
        top = _mm512_max_ps(top, score);
    }
    const __m512 top_512 = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    __m512 total = _mm512_setzero_ps();
    for (int64_t at = 0; at < num_positions; at += LANES) {
        const __m512 weight = exp512(_mm512_sub_ps(load(score_L + at), top_512));
        store(score_L + at, weight);
        total = _mm512_add_ps(total, weight);
    }
    __m512 even[PARTS], odd[PARTS];
    for (int64_t part = 0; part < PARTS; ++part) even[part] = odd[part] = _mm512_setzero_ps();
    for (int64_t at = 0; at + 1 < num_positions; at += 2) {
        const __m512 weight = _mm512_set1_ps(score_L[at]), next_weight = _mm512_set1_ps(score_L[at + 1]);
        for (int64_t part = 0; part < PARTS; ++part) {
            even[part] = _mm512_fmadd_ps(weight, load(v_LK + at * K + part * LANES), even[part]);
            odd[part] = _mm512_fmadd_ps(next_weight, load(v_LK + (at + 1) * K + part * LANES), odd[part]);
        }
    }
    if (num_positions % 2) {
        const __m512 weight = _mm512_set1_ps(score_L[num_positions - 1]);
        for (int64_t part = 0; part < PARTS; ++part)
            even[part] = _mm512_fmadd_ps(weight, load(v_LK + (num_positions - 1) * K + part * LANES), even[part]);
    }
    const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (int64_t part = 0; part < PARTS; ++part)
        store(y_K + part * LANES, _mm512_mul_ps(_mm512_add_ps(even[part], odd[part]), share));
}

struct CacheShape {
    int64_t num_rows, num_heads, row_stride, head_stride;
};

// The newest token of each row against its own past; writes that token's key and value into the cache first.
template <typename T, int64_t K>
void self_attention(const T *qkv_B3HK, T *keys, T *values, const float *bias_HA, int64_t bias_stride,
                    const int64_t *position_B, T *y_BHK, CacheShape shape) {
    share_items(shape.num_rows * shape.num_heads, HEADS_AT_ONCE, [&](int64_t first, int64_t last) {
        for (int64_t at = first; at < last; ++at) {
            const int64_t row = at / shape.num_heads, head = at % shape.num_heads;
            const int64_t position = position_B[row], num_positions = position + 1;
            const int64_t place = row * shape.row_stride + head * shape.head_stride;
            const T *q_K = qkv_B3HK + (row * 3 * shape.num_heads + head) * K;
            std::memcpy(keys + place + position * K, q_K + shape.num_heads * K, sizeof(T) * K);
            std::memcpy(values + place + position * K, q_K + 2 * shape.num_heads * K, sizeof(T) * K);
            // The bias lies by age, oldest first: the last num_positions of it are ages position .. 0.
            const float *bias_L = bias_HA + (head + 1) * bias_stride - num_positions;
            attend<T, K>(q_K, keys + place, values + place, bias_L, num_positions,
                         scratch<float>(whole_lanes(num_positions)), y_BHK + at * K);
        }
    });
}

// One query of each row against the encoder's keys and values of that row, as many as it has.
template <typename T, int64_t K>
void cross_attention(const T *q_BHK, const T *keys, const T *values, const int64_t *length_B, T *y_BHK,
                     CacheShape shape) {
    share_items(shape.num_rows * shape.num_heads, HEADS_AT_ONCE, [&](int64_t first, int64_t last) {
        for (int64_t at = first; at < last; ++at) {
            const int64_t row = at / shape.num_heads, head = at % shape.num_heads;
            const int64_t place = row * shape.row_stride + head * shape.head_stride;
            attend<T, K>(q_BHK + at * K, keys + place, values + place, nullptr, length_B[row],
                         scratch<float>(whole_lanes(length_B[row])), y_BHK + at * K);
        }
    });
}

// The first `count` numbers of up to 16; zero for the rest.
inline __m512 load_some(const float *from, int64_t count) {
    return _mm512_maskz_loadu_ps(count < LANES ? (1u << count) - 1 : 0xffff, from);
}
inline __m512 load_some(const bf16 *from, int64_t count) {
    const __mmask16 mask = count < LANES ? (1u << count) - 1 : 0xffff;
    const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// x A for up to four times 16 ranks, in one pass over A; `stride` is the ranks of a row of A.
template <typename T, int64_t PARTS>
void shrink(const float *x_I, int64_t in_width, const T *a_IR, int64_t stride, int64_t num_ranks, float *h_R) {
    __m512 even[PARTS], odd[PARTS];
    for (int64_t part = 0; part < PARTS; ++part) even[part] = odd[part] = _mm512_setzero_ps();
    for (int64_t in = 0; in + 1 < in_width; in += 2) {
        const __m512 x = _mm512_set1_ps(x_I[in]), next_x = _mm512_set1_ps(x_I[in + 1]);
        for (int64_t part = 0; part < PARTS; ++part) {
            const T *a_R = a_IR + in * stride + part * LANES;
            const int64_t count = num_ranks - part * LANES;
            even[part] = _mm512_fmadd_ps(x, load_some(a_R, count), even[part]);
            odd[part] = _mm512_fmadd_ps(next_x, load_some(a_R + stride, count), odd[part]);
        }
    }
    for (int64_t part = 0; part < PARTS; ++part) store(h_R + part * LANES, _mm512_add_ps(even[part], odd[part]));
}

// B of one module: takes the next `num_ranks` of the site's ranks, adds to columns start .. start + width.
struct LoraPart {
    int64_t b_RW, num_ranks, start, width;
};

// One adapter at one site: the A of its modules side by side, then as many parts.
struct LoraSite {
    int64_t a_IR, num_ranks, num_parts;
    LoraPart parts[1];
};

template <typename T>
void expand(const float *h_R, const LoraPart &part, T *y_O) {
    const T *b_RW = reinterpret_cast<const T *>(part.b_RW);
    T *y_W = y_O + part.start;
    for (int64_t at = 0; at < part.width; at += LANES) {
        __m512 even = load(y_W + at), odd = _mm512_setzero_ps();
        int64_t rank = 0;
        for (; rank + 1 < part.num_ranks; rank += 2) {
            even = _mm512_fmadd_ps(_mm512_set1_ps(h_R[rank]), load(b_RW + rank * part.width + at), even);
            odd = _mm512_fmadd_ps(_mm512_set1_ps(h_R[rank + 1]), load(b_RW + (rank + 1) * part.width + at), odd);
        }
        if (rank < part.num_ranks)
            even = _mm512_fmadd_ps(_mm512_set1_ps(h_R[rank]), load(b_RW + rank * part.width + at), even);
        store(y_W + at, _mm512_add_ps(even, odd));
    }
}

template <typename T>
void add_site(const LoraSite &site, const T *x_I, int64_t in_width, T *y_O) {
    float *wide_x_I = scratch<float>(in_width + whole_lanes(site.num_ranks)), *h_R = wide_x_I + in_width;
    for (int64_t at = 0; at < in_width; at += LANES) store(wide_x_I + at, load(x_I + at));
    for (int64_t first = 0; first < site.num_ranks; first += 4 * LANES) {
        const T *a_IR = reinterpret_cast<const T *>(site.a_IR) + first;
        const int64_t left = site.num_ranks - first, num_parts = (left + LANES - 1) / LANES;
        const auto call = num_parts == 1   ? shrink<T, 1>
                          : num_parts == 2 ? shrink<T, 2>
                          : num_parts == 3 ? shrink<T, 3>
                                           : shrink<T, 4>;
        call(wide_x_I, in_width, a_IR, site.num_ranks, left, h_R + first);
    }
    for (int64_t part = 0; part < site.num_parts; ++part) {
        expand(h_R, site.parts[part], y_O);
        h_R += site.parts[part].num_ranks;
    }
}

// Adds each row's adapter at one site. A row without one there has address 0 and costs nothing.
template <typename T>
void add_lora(const int64_t *site_B, int64_t num_rows, const T *x_BI, int64_t in_width, T *y_BO, int64_t out_width) {
    share_items(num_rows, 1, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            if (site_B[row])
                add_site(*reinterpret_cast<const LoraSite *>(site_B[row]), x_BI + row * in_width, in_width,
                         y_BO + row * out_width);
    });
}

// The token with the largest logit, the first of equals; -1 where a logit is NaN or positive infinity.
template <typename T>
int64_t best_token(const T *logit_V, int64_t size) {
    const __m512i step = _mm512_set1_epi32(LANES);
    __m512i token = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), best_token = token;
    __m512 best = load(logit_V);
    __mmask16 is_nan = _mm512_cmp_ps_mask(best, best, _CMP_UNORD_Q);
    for (int64_t at = LANES; at < size; at += LANES) {
        const __m512 logit = load(logit_V + at);
        token = _mm512_add_epi32(token, step);
        is_nan |= _mm512_cmp_ps_mask(logit, logit, _CMP_UNORD_Q);
        const __mmask16 is_better = _mm512_cmp_ps_mask(logit, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, is_better, logit);
        best_token = _mm512_mask_mov_epi32(best_token, is_better, token);
    }
    const float top = _mm512_reduce_max_ps(best);
    if (is_nan || top == __builtin_inff()) return -1;
    const __mmask16 is_top = _mm512_cmp_ps_mask(best, _mm512_set1_ps(top), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(is_top, best_token);
}

template <typename T>
void argmax(const T *logit_BV, int64_t *token_B, int64_t num_rows, int64_t size) {
    share_items(num_rows, 1, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) token_B[row] = best_token(logit_BV + row * size, size);
    });
}

}  // namespace medley
