// Adding rows up on a GPU: where the rows of a segment stand, how a thread adds its columns, how a sum ends.
#pragma once

#include "device_cuda.h"

namespace fv {

// Rows that one group of threads adds up in a pass over long segments; a power of two.
constexpr int chunk_bits = 6;
constexpr int64_t chunk = int64_t{1} << chunk_bits;
// Above this many rows a segment on average, segments are cut into chunks: whole ones would leave processors
// idle.
constexpr int64_t long_segment = 64;

// What a thread keeps of an access until it adds: 16-bit elements stay two to a register.
template <class T, int V, bool kPaired = sizeof(T) == 2 && (V > 1)>
struct Held {
    Pack<T, V> pack;
    FV_DEVICE typename Sum<T>::type at(int v) const { return widen(pack.at[v]); }
};

template <int V>
struct Held<BFloat16, V, true> {
    Pack<uint32_t, V / 2> pack;
    FV_DEVICE float at(int v) const {
        const uint32_t pair = pack.at[v / 2];
        return bit_cast<float>(v % 2 != 0 ? pair & 0xffff0000u : pair << 16);
    }
};

template <int V>
struct Held<Half, V, true> {
    Pack<uint32_t, V / 2> pack;
    FV_DEVICE float at(int v) const {
        return widen(Half{static_cast<uint16_t>(pack.at[v / 2] >> (v % 2 * 16))});
    }
};

// Where each segment's rows stand: first..last-1. At level 0 the offsets say so (null: one segment of all
// rows). A pass in chunks leaves one partial sum for each chunk c that a segment s touches, at row s + c:
// both only grow along the rows, so no two share a row, and those of a segment are neighbours at the next
// level.
struct Spans {
    const int64_t* offsets;
    int64_t segments;
    int64_t rows;
    int levels;

    FV_DEVICE void of(int64_t s, int64_t* first, int64_t* last) const {
        int64_t a = offsets != nullptr ? offsets[s] : 0;
        int64_t b = offsets != nullptr ? offsets[s + 1] : rows;
        for (int level = 0; level < levels; ++level) {
            b = b > a ? s + ((b - 1) >> chunk_bits) + 1 : s + (a >> chunk_bits);
            a = s + (a >> chunk_bits);
        }
        *first = a;
        *last = b;
    }
};

// Row i, or order[i] if there is an order; where there are occupants, only rows whose occupant is negative.
template <class T>
struct Rows {
    const T* src;
    int64_t stride;
    const int64_t* order;
    const int64_t* occupant;
};

// A thread's packs of one row of sums: `loads` of them, blockDim.x apart from `column` on.
template <class T, int V>
struct Total {
    using S = typename Sum<T>::type;
    S at[loads][V];

    FV_DEVICE void clear() {
#pragma unroll
        for (int c = 0; c < loads; ++c) {
#pragma unroll
            for (int v = 0; v < V; ++v) at[c][v] = S{0};
        }
    }

    // Adds rows first..last-1, one after the other; `ahead` of them are loaded before the first is added.
    template <int ahead>
    FV_DEVICE void add(const Rows<T>& rows, int64_t first, int64_t last, int64_t column, int64_t row_packs) {
        for (int64_t start = first; start < last; start += ahead) {
            Held<T, V> held[ahead][loads];
            bool taken[ahead];
#pragma unroll
            for (int r = 0; r < ahead; ++r) {
                taken[r] = start + r < last;
                if (!taken[r]) continue;
                const int64_t row = rows.order != nullptr ? rows.order[start + r] : start + r;
                if (rows.occupant != nullptr) taken[r] = rows.occupant[row] < 0;
                if (!taken[r]) continue;
                const Held<T, V>* from = reinterpret_cast<const Held<T, V>*>(rows.src + row * rows.stride);
#pragma unroll
                for (int c = 0; c < loads; ++c) {
                    const int64_t place = column + static_cast<int64_t>(c) * blockDim.x;
                    if (place < row_packs) held[r][c] = from[place];
                }
            }
#pragma unroll
            for (int r = 0; r < ahead; ++r) {
                if (!taken[r]) continue;
#pragma unroll
                for (int c = 0; c < loads; ++c) {
                    if (column + static_cast<int64_t>(c) * blockDim.x >= row_packs) continue;
#pragma unroll
                    for (int v = 0; v < V; ++v) at[c][v] += held[r][c].at(v);
                }
            }
        }
    }

    template <class Out>
    FV_DEVICE void store(Pack<Out, V>* row, int64_t column, int64_t row_packs) const {
#pragma unroll
        for (int c = 0; c < loads; ++c) {
            const int64_t place = column + static_cast<int64_t>(c) * blockDim.x;
            if (place >= row_packs) continue;
            Pack<Out, V> pack;
#pragma unroll
            for (int v = 0; v < V; ++v) narrow(at[c][v], &pack.at[v]);
            row[place] = pack;
        }
    }
};

// What becomes of a sum: divided by its segment's rows, or NaN.
struct Finish {
    const int64_t* offsets;
    int64_t segments;
    int64_t rows;
    int32_t mean;
    int32_t all_rows;
    Guard guard;

    FV_DEVICE bool spoiled() const {
        return guard.spoiled() || (all_rows != 0 && (offsets[0] != 0 || offsets[segments] != rows));
    }

    FV_DEVICE int64_t divisor(int64_t s) const {
        const int64_t count = mean != 0 ? offsets[s + 1] - offsets[s] : 1;
        return count > 1 ? count : 1;
    }
};

}  // namespace fv
