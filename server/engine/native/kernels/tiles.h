// How a linear layer is cut into tiles that keep their sums in registers, whatever the numbers are.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "pool.h"

namespace medley {

// More rows would need a load of an input for nearly every product.
constexpr int64_t ROWS_AT_ONCE = 8;
// Inputs of so many tiles stay near while a thread's weights pass over them, a group at a time.
constexpr int64_t TILES_NEAR = 16;

// As many blocks of 16 outputs as leave registers for the sums: 24 of them, or 8 blocks.
constexpr int blocks_at_once(int64_t rows) { return static_cast<int>(rows <= 3 ? 8 : 24 / rows); }

template <typename Linear, int ROWS, bool FETCHES>
void rows_of_tiles(const Linear &linear, int64_t first, int64_t block, int64_t num_blocks) {
    constexpr int BLOCKS = blocks_at_once(ROWS);
    int64_t at = block;
    for (; at + BLOCKS <= block + num_blocks; at += BLOCKS) linear.template tile<ROWS, BLOCKS, FETCHES>(first, at);
    for (; at < block + num_blocks; ++at) linear.template tile<ROWS, 1, false>(first, at);
}

template <typename Linear, bool FETCHES>
constexpr void (*ROWS_OF_TILES[ROWS_AT_ONCE + 1])(const Linear &, int64_t, int64_t, int64_t) = {
    nullptr,
    rows_of_tiles<Linear, 1, FETCHES>,
    rows_of_tiles<Linear, 2, FETCHES>,
    rows_of_tiles<Linear, 3, FETCHES>,
    rows_of_tiles<Linear, 4, FETCHES>,
    rows_of_tiles<Linear, 5, FETCHES>,
    rows_of_tiles<Linear, 6, FETCHES>,
    rows_of_tiles<Linear, 7, FETCHES>,
    rows_of_tiles<Linear, 8, FETCHES>,
};

// Calls linear.tile<rows, blocks>(first row, first block) until all rows and blocks are done, on all threads.
template <typename Linear>
void share_tiles(const Linear &linear, int64_t num_rows, int64_t num_blocks) {
    const int64_t num_tiles = (num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    const int64_t group = blocks_at_once((num_rows + num_tiles - 1) / num_tiles);
    share_items((num_blocks + group - 1) / group, 1, [&](int64_t first_group, int64_t last_group) {
        for (int64_t near = 0; near < num_tiles; near += TILES_NEAR)
            for (int64_t block = first_group * group; block < std::min(last_group * group, num_blocks); block += group)
                for (int64_t tile = near, end = std::min(near + TILES_NEAR, num_tiles); tile < end; ++tile) {
                    // Tiles of nearly equal height: a tile of one row would wait for itself.
                    const int64_t first = tile * num_rows / num_tiles, last = (tile + 1) * num_rows / num_tiles;
                    // The last pass over a group finds its weights near: memory has time for the next group's.
                    const auto run = tile > near && tile + 1 == end ? ROWS_OF_TILES<Linear, true>[last - first]
                                                                    : ROWS_OF_TILES<Linear, false>[last - first];
                    run(linear, first, block, std::min(group, num_blocks - block));
                }
    });
}

}  // namespace medley
