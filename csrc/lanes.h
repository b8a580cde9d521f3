// Vectors of W floats, as compiler extensions: one source for 4, 8 and 16.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

// Vectors only pass between inlined functions, so no caller can disagree about how.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace fv {

template <int W>
struct Lanes {
    typedef float Floats __attribute__((vector_size(W * 4)));
    typedef int32_t Ints __attribute__((vector_size(W * 4)));
    // Vectors of a row of a tile: with six rows all sums stay in the 32 (or 16) registers.
    static constexpr int vectors = W == 16 ? 4 : 2;
    static constexpr int64_t panel = W * vectors;
};

template <int W>
using Floats = typename Lanes<W>::Floats;

template <int W>
FV_INLINE Floats<W> load(const float* p) {
    Floats<W> x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

template <int W>
FV_INLINE void store(const Floats<W>& x, float* p) {
    std::memcpy(p, &x, sizeof x);
}

// x in every lane; -0 becomes 0.
template <int W>
FV_INLINE Floats<W> all(float x) {
    return Floats<W>{} + x;
}

// 2^x, within 2 units in the last place; 0 below -126, NaN of NaN. x <= 127.
template <int W>
FV_INLINE Floats<W> exp2(const Floats<W>& x) {
    using I = typename Lanes<W>::Ints;
    // Added to 1.5 * 2^23, a float keeps its whole part in its last bits.
    const Floats<W> shifted = x + 12582912.0f;
    const Floats<W> f = x - (shifted - 12582912.0f);
    // Near-minimax on [-1/2, 1/2], relative error 2e-9, fitted by Lawson's iteration.
    Floats<W> p = f * 1.535336188985062e-4f + 1.3398874422366376e-3f;
    p = p * f + 9.618437357817956e-3f;
    p = p * f + 5.550332471099857e-2f;
    p = p * f + 2.4022647913626521e-1f;
    p = p * f + 6.931472028550826e-1f;
    p = p * f + 1.0f;
    const I power = ((I)shifted + 127) << 23;
    p *= (Floats<W>)power;
    return x < -126.0f ? Floats<W>{} : p;
}

template <int W>
FV_INLINE float largest(const Floats<W>& x) {
    if constexpr (W == 4) {
        const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
        return a > b ? a : b;
    } else {
        Floats<W / 2> half[2];
        std::memcpy(half, &x, sizeof x);
        return largest<W / 2>(half[0] > half[1] ? half[0] : half[1]);
    }
}

template <int W>
FV_INLINE float total(const Floats<W>& x) {
    if constexpr (W == 4) {
        return (x[0] + x[1]) + (x[2] + x[3]);
    } else {
        Floats<W / 2> half[2];
        std::memcpy(half, &x, sizeof x);
        return total<W / 2>(half[0] + half[1]);
    }
}

}  // namespace fv
