// Element types by the codes that Python passes, and their conversion to and from float. The 16-bit formats
// are converted with integer arithmetic: it vectorises at every level and needs no F16C.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace fv {

enum Dtype : int64_t { dtype_f32 = 0, dtype_f64 = 1, dtype_f16 = 2, dtype_bf16 = 3, dtype_u8 = 4 };

struct Half {
    uint16_t bits;
};

struct BFloat16 {
    uint16_t bits;
};

template <class To, class From>
FV_INLINE To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

// Arithmetic on masks, where `?:` would let the compiler branch around a subtraction and then not vectorise.
FV_INLINE uint32_t select(bool condition, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - static_cast<uint32_t>(condition);
    return (yes & mask) | (no & ~mask);
}

FV_INLINE float to_float(float x) { return x; }
FV_INLINE float to_float(uint8_t x) { return static_cast<float>(static_cast<int32_t>(x)); }
FV_INLINE float to_float(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

FV_INLINE float to_float(Half x) {
    const uint32_t rebias = 112u << 23;
    uint32_t magnitude = x.bits & 0x7fffu;
    uint32_t normal = (magnitude << 13) + rebias;
    // A subnormal counts units of 2^-24, the last place of a float in [0.5, 1).
    uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(0x3f000000u | magnitude) - 0.5f);
    uint32_t bits = select(magnitude < 0x400u, subnormal, normal);
    bits = select(magnitude >= 0x7c00u, normal + rebias, bits);
    return bit_cast<float>(bits | (static_cast<uint32_t>(x.bits & 0x8000u) << 16));
}

// Rounding is to nearest even; a NaN stays a NaN.
FV_INLINE void from_float(float x, float* out) { *out = x; }

FV_INLINE void from_float(float x, BFloat16* out) {
    uint32_t bits = bit_cast<uint32_t>(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out->bits = static_cast<uint16_t>(select((bits & 0x7fffffffu) > 0x7f800000u, 0x7fc0u, rounded));
}

FV_INLINE void from_float(float x, Half* out) {
    uint32_t bits = bit_cast<uint32_t>(x);
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = select(magnitude < 0x38800000u, subnormal, normal);
    half = select(magnitude >= 0x47800000u, 0x7c00u, half);
    half = select(magnitude > 0x7f800000u, 0x7e00u, half);
    out->bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

// Sums run in float32, and in float64 for float64.
template <class T>
struct Accumulator {
    using type = float;
    static FV_INLINE float load(T x) { return to_float(x); }
    static FV_INLINE void store(float x, T* out) { from_float(x, out); }
};

template <>
struct Accumulator<double> {
    using type = double;
    static FV_INLINE double load(double x) { return x; }
    static FV_INLINE void store(double x, double* out) { *out = x; }
};

}  // namespace fv
