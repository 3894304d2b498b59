// Linears and the encoder's attention over numbers of one type; bf16.cpp and f32.cpp say how numbers are multiplied.
//
// A decode step multiplies few rows by many weights. Each block of 16 outputs is read once, in order, against up to 8
// rows whose sums stay in registers; libraries' products, made for many rows, reach about two thirds of the speed.
// Attention of a packed encoder row is two such products with a softmax between, for 8 queries at a time: no padding,
// no mask, and a bias of one number per distance instead of one per pair.
//
// `Type` has Number, Operand, STEP inputs multiplied at once, input(x) spread over all lanes, block(weights) of 16
// outputs, and add(sum, block, input). Packed weights lie as (O / 16, I / STEP, 16, STEP).
//
// Legend: N rows, T tokens, I inputs, O outputs, H heads, K head width, L tokens of a row.
#pragma once

#include <cmath>
#include <cstring>

#include "lanes.h"
#include "tiles.h"

namespace medley {

// Sums of ROWS rows by BLOCKS blocks of 16 outputs; `use` is called with row, block and the sum. With FETCHES the
// blocks that lie behind these are brought near meanwhile.
template <typename Type, int ROWS, int BLOCKS, bool FETCHES = false, typename Use>
inline void multiply(const typename Type::Number *x, int64_t x_stride, const typename Type::Number *weight,
                     int64_t num_inputs, Use use) {
    __m512 sum[ROWS][BLOCKS];
    // Unrolled, all of them: a sum picked by a variable would have to lie in memory.
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) sum[row][block] = _mm512_setzero_ps();
    for (int64_t in = 0; in < num_inputs; in += Type::STEP) {
        typename Type::Operand part[BLOCKS];
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block)
            part[block] = Type::block(weight + (block * num_inputs + in) * LANES);
        if constexpr (FETCHES)
#pragma GCC unroll 8
            for (int block = 0; block < BLOCKS; ++block)
                _mm_prefetch(weight + ((BLOCKS + block) * num_inputs + in) * LANES, _MM_HINT_T1);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const typename Type::Operand input = Type::input(x + row * x_stride + in);
#pragma GCC unroll 8
            for (int block = 0; block < BLOCKS; ++block)
                sum[row][block] = Type::add(sum[row][block], part[block], input);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int block = 0; block < BLOCKS; ++block) use(row, block, sum[row][block]);
}

template <typename Type>
struct Linear {
    using Number = typename Type::Number;
    const Number *x_NI, *weight, *residual_NO;
    Number *y_NO;
    int64_t num_inputs, num_outputs;

    template <int ROWS, int BLOCKS, bool FETCHES>
    void tile(int64_t first, int64_t block) const {
        const int64_t corner = first * num_outputs + block * LANES;
        multiply<Type, ROWS, BLOCKS, FETCHES>(x_NI + first * num_inputs, num_inputs,
                                              weight + block * num_inputs * LANES, num_inputs,
                                              [&](int row, int next, __m512 sum) {
                                                  const int64_t at = corner + row * num_outputs + next * LANES;
                                                  if (residual_NO) sum = _mm512_add_ps(sum, load(residual_NO + at));
                                                  store(y_NO + at, sum);
                                              });
    }
};

// Scores to weights: bias added, exponentials taken; returns one over their sum. Both arrays are whole lanes long.
template <typename Number>
float soften(float *score_L, const float *bias_L, int64_t num_tokens, Number *weight_L) {
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

// The queries, keys and values of a packed input, and where the attention goes.
template <typename Type>
struct EncoderAttention {
    using Number = typename Type::Number;
    static constexpr int64_t STEP = Type::STEP;
    const Number *qkv_T3HK;
    const int64_t *first_B;
    const float *bias_HN;
    int64_t bias_stride, bias_zero;
    Number *y_THK;
    int64_t num_heads, width;

    // One row and head, with its keys and values packed as the products want their second operand.
    struct Head {
        const Number *q_LK;
        const float *bias;
        Number *y_LK;
        int64_t num_tokens, padded;
        Number *keys, *values, *weight;
        float *score;
    };

    void run(int64_t row, int64_t head_index) const {
        const int64_t first = first_B[row], num_tokens = first_B[row + 1] - first, padded = whole_lanes(num_tokens);
        Head head{qkv_T3HK + first * stride() + head_index * width,
                  bias_HN + head_index * bias_stride + bias_zero,
                  y_THK + first * num_heads * width + head_index * width,
                  num_tokens,
                  padded,
                  scratch<Number>((2 * width + ROWS_AT_ONCE) * padded),
                  nullptr,
                  nullptr,
                  scratch<float>(ROWS_AT_ONCE * padded, 1)};
        head.values = head.keys + width * padded;
        head.weight = head.values + width * padded;
        pack(head);
        static constexpr void (EncoderAttention::*ATTEND[])(const Head &, int64_t) const = {
            nullptr,
            &EncoderAttention::attend<1>,
            &EncoderAttention::attend<2>,
            &EncoderAttention::attend<3>,
            &EncoderAttention::attend<4>,
            &EncoderAttention::attend<5>,
            &EncoderAttention::attend<6>,
            &EncoderAttention::attend<7>,
            &EncoderAttention::attend<8>,
        };
        const int64_t num_tiles = (num_tokens + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            const int64_t at = tile * num_tokens / num_tiles;
            (this->*ATTEND[(tile + 1) * num_tokens / num_tiles - at])(head, at);
        }
    }

  private:
    int64_t stride() const { return 3 * num_heads * width; }

    // Zeros beyond the row's tokens.
    void pack(const Head &head) const {
        const Number *k_LK = head.q_LK + num_heads * width, *v_LK = k_LK + num_heads * width;
        for (int64_t token = 0; token < head.padded; ++token) {
            Number *key = head.keys + token / LANES * width * LANES + token % LANES * STEP;
            Number *value = head.values + token / STEP * STEP * LANES + token % STEP;
            const bool is_there = token < head.num_tokens;
            for (int64_t at = 0; at < width; at += STEP)
                if (is_there)
                    std::memcpy(key + at * LANES, k_LK + token * stride() + at, STEP * sizeof(Number));
                else
                    std::memset(key + at * LANES, 0, STEP * sizeof(Number));
            for (int64_t at = 0; at < width; ++at)
                value[at / LANES * head.padded * LANES + at % LANES * STEP] =
                    is_there ? v_LK[token * stride() + at] : Number{};
        }
    }

    // ROWS queries from `first` on.
    template <int ROWS>
    void attend(const Head &head, int64_t first) const {
        int64_t block = 0;
        for (; block + 3 <= head.padded / LANES; block += 3) score<ROWS, 3>(head, first, block);
        for (; block < head.padded / LANES; ++block) score<ROWS, 1>(head, first, block);
        float share[ROWS];
        for (int row = 0; row < ROWS; ++row)
            share[row] = soften(head.score + row * head.padded, head.bias - first - row, head.num_tokens,
                                head.weight + row * head.padded);
        for (block = 0; block + 2 <= width / LANES; block += 2) mix<ROWS, 2>(head, first, block, share);
        for (; block < width / LANES; ++block) mix<ROWS, 1>(head, first, block, share);
    }

    template <int ROWS, int BLOCKS>
    void score(const Head &head, int64_t first, int64_t block) const {
        multiply<Type, ROWS, BLOCKS>(head.q_LK + first * stride(), stride(), head.keys + block * width * LANES, width,
                                     [&](int row, int next, __m512 sum) {
                                         store(head.score + row * head.padded + (block + next) * LANES, sum);
                                     });
    }

    template <int ROWS, int BLOCKS>
    void mix(const Head &head, int64_t first, int64_t block, const float *share) const {
        multiply<Type, ROWS, BLOCKS>(head.weight, head.padded, head.values + block * head.padded * LANES, head.padded,
                                     [&](int row, int next, __m512 sum) {
                                         store(head.y_LK + (first + row) * num_heads * width + (block + next) * LANES,
                                               _mm512_mul_ps(sum, _mm512_set1_ps(share[row])));
                                     });
    }
};

// One adapter at one site, packed as the products want it: A of all its modules side by side, ranks padded to 16, then
// as many parts. Zeros stand where there is padding.
struct PackedLoraPart {
    int64_t b, first_rank, num_ranks, start, width;
};
struct PackedLora {
    int64_t a, num_ranks, num_parts;
    PackedLoraPart parts[1];
};

// Adds B (A x) of one adapter to rows that lie together.
template <typename Type>
struct LoraRows {
    using Number = typename Type::Number;
    const PackedLora &lora;
    const Number *x_NI;
    int64_t num_inputs;
    Number *y_NO;
    int64_t num_outputs;

    template <int ROWS>
    void run(int64_t first) const {
        Number *h_NR = scratch<Number>(ROWS * stride());
        // The last part of an odd number of ranks reads one more, against a zero; it must not find NaN there.
        for (int row = 0; row < ROWS; ++row) store(h_NR + row * stride() + lora.num_ranks, _mm512_setzero_ps());
        const auto *a = reinterpret_cast<const Number *>(lora.a);
        int64_t block = 0;
        for (; block + 2 <= lora.num_ranks / LANES; block += 2) shrink<ROWS, 2>(first, a, block, h_NR);
        for (; block < lora.num_ranks / LANES; ++block) shrink<ROWS, 1>(first, a, block, h_NR);
        for (int64_t index = 0; index < lora.num_parts; ++index) {
            const PackedLoraPart &part = lora.parts[index];
            for (block = 0; block + 3 <= part.width / LANES; block += 3) expand<ROWS, 3>(first, part, block, h_NR);
            for (; block < part.width / LANES; ++block) expand<ROWS, 1>(first, part, block, h_NR);
        }
    }

  private:
    int64_t stride() const { return lora.num_ranks + LANES; }

    template <int ROWS, int BLOCKS>
    void shrink(int64_t first, const Number *a, int64_t block, Number *h_NR) const {
        multiply<Type, ROWS, BLOCKS>(
            x_NI + first * num_inputs, num_inputs, a + block * num_inputs * LANES, num_inputs,
            [&](int row, int next, __m512 sum) { store(h_NR + row * stride() + (block + next) * LANES, sum); });
    }

    template <int ROWS, int BLOCKS>
    void expand(int64_t first, const PackedLoraPart &part, int64_t block, const Number *h_NR) const {
        const auto *b = reinterpret_cast<const Number *>(part.b) + block * part.num_ranks * LANES;
        multiply<Type, ROWS, BLOCKS>(
            h_NR + part.first_rank, stride(), b, part.num_ranks, [&](int row, int next, __m512 sum) {
                Number *y = y_NO + (first + row) * num_outputs + part.start + (block + next) * LANES;
                store(y, _mm512_add_ps(load(y), sum));
            });
    }
};

template <typename Type>
void run_lora(const LoraRows<Type> &lora, int64_t first_row, int64_t num_rows) {
    static constexpr void (LoraRows<Type>::*RUN[])(int64_t) const = {
        nullptr,
        &LoraRows<Type>::template run<1>,
        &LoraRows<Type>::template run<2>,
        &LoraRows<Type>::template run<3>,
        &LoraRows<Type>::template run<4>,
        &LoraRows<Type>::template run<5>,
        &LoraRows<Type>::template run<6>,
        &LoraRows<Type>::template run<7>,
        &LoraRows<Type>::template run<8>,
    };
    const int64_t num_tiles = (num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    share_items(num_tiles, 2, [&](int64_t first, int64_t last) {
        for (int64_t tile = first; tile < last; ++tile) {
            const int64_t at = tile * num_rows / num_tiles;
            (lora.*RUN[(tile + 1) * num_rows / num_tiles - at])(first_row + at);
        }
    });
}

template <typename Type>
void run_linear(const Linear<Type> &linear, int64_t num_rows) {
    share_tiles(linear, num_rows, linear.num_outputs / LANES);
}

template <typename Type>
void run_attention(const EncoderAttention<Type> &attention, int64_t num_rows) {
    share_items(num_rows * attention.num_heads, 1, [&](int64_t first, int64_t last) {
        for (int64_t at = first; at < last; ++at) attention.run(at / attention.num_heads, at % attention.num_heads);
    });
}

}  // namespace medley
