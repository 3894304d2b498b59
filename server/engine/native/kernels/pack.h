// Laying a weight out for products of many rows, from a matrix in any order of memory.
//
// Once per load of an adapter or a base, but on the processor that the steps run on: tensor by tensor, an adapter has
// over a hundred, a general strided copy takes several times as long.

#pragma once

#include <algorithm>
#include <cstdint>

namespace medley {

// Writes blocks of 16 outputs: for each group of STEP inputs, the group of every output. What is missing to whole
// blocks and groups is written as zero. Element (o, i) lies at source[o * output_stride + i * input_stride].
template <int64_t STEP, typename T>
void pack(const T *source, int64_t num_outputs, int64_t num_inputs, int64_t output_stride, int64_t input_stride,
          T *packed) {
    constexpr int64_t LANES = 16;
    for (int64_t first = 0; first < num_outputs; first += LANES) {
        const int64_t num_lanes = std::min(LANES, num_outputs - first);
        for (int64_t group = 0; group < num_inputs; group += STEP, packed += LANES * STEP) {
            const T *from = source + first * output_stride + group * input_stride;
            if (num_lanes == LANES && group + STEP <= num_inputs) {
                for (int64_t lane = 0; lane < LANES; lane++)
                    for (int64_t s = 0; s < STEP; s++)
                        packed[lane * STEP + s] = from[lane * output_stride + s * input_stride];
                continue;
            }
            std::fill_n(packed, LANES * STEP, T{});
            for (int64_t lane = 0; lane < num_lanes; lane++)
                for (int64_t s = 0; s < std::min(STEP, num_inputs - group); s++)
                    packed[lane * STEP + s] = from[lane * output_stride + s * input_stride];
        }
    }
}

}  // namespace medley
