// What the CUDA kernels share: accesses of several elements, sums and conversions, launches. Nothing here
// waits for the device or changes which one is current, and all of it may be captured into a graph.
// tests/cuda_shim stands in for <cuda_runtime.h>, so that the same sources run on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "dtypes.h"

#define FV_DEVICE __device__ __forceinline__

namespace fv {

// Threads of a block.
constexpr int block_threads = 256;
// Accesses that a thread starts before it waits for the first: with 16 bytes each and 512 or more threads
// resident, a multiprocessor has 32 KiB and more under way, which is what memory of 3 TB/s needs.
constexpr int loads = 4;
// Blocks of a launch to a multiprocessor at most; beyond that blocks take several rows one after the other.
constexpr int64_t blocks_each = 64;

// V elements that are loaded and stored by one access of up to 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
    T at[V];
};

// The result is all NaN where *flag is not what it holds when all ids are good; a null flag is always good.
struct Guard {
    const int64_t* flag;
    int64_t clean;

    FV_DEVICE bool spoiled() const { return flag != nullptr && *flag != clean; }
};

// Sums run in float32, and in float64 for float64. The device's own conversions are one instruction; those of
// dtypes.h, in integers, would make a sum over float16 wait for arithmetic.
template <class T>
struct Sum {
    using type = float;
};

template <>
struct Sum<double> {
    using type = double;
};

FV_DEVICE float widen(float x) { return x; }
FV_DEVICE double widen(double x) { return x; }
FV_DEVICE float widen(BFloat16 x) { return to_float(x); }

FV_DEVICE float widen(Half x) {
#ifdef __CUDA_ARCH__
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#else
    return to_float(x);
#endif
}

FV_DEVICE void narrow(float x, float* out) { *out = x; }
FV_DEVICE void narrow(double x, double* out) { *out = x; }

FV_DEVICE void narrow(float x, Half* out) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
    from_float(x, out);
#endif
}

FV_DEVICE void narrow(float x, BFloat16* out) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
    from_float(x, out);
#endif
}

template <class S>
FV_DEVICE S not_a_number() {
    return static_cast<S>(bit_cast<float>(0x7fc00000u));
}

// total / over, where `over` is a whole number from 1 on and `inverse` is 1 / over: one Newton step rounds it
// as a division would, above the subnormals. A division itself is a call, which keeps every register alive.
template <class S>
FV_DEVICE S divided(S total, S over, S inverse) {
    const S near = total * inverse;
    const S exact = std::fma(std::fma(-near, over, total), inverse, near);
    // Of an infinity nothing is left over, but NaN.
    return exact == exact ? exact : near;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many of the low bits of all these addresses and sizes are zero, as a power of two of at most 16.
template <class... Values>
int64_t alignment(Values... values) {
    const uint64_t bits = (uint64_t{16} | ... | static_cast<uint64_t>(values));
    return static_cast<int64_t>(bits & (~bits + 1));
}

inline uint64_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// A launch over rows of packs. threadIdx.x runs along a row, blockIdx.x over what is left of it; threadIdx.y
// and blockIdx.y run over rows. A kernel strides by the whole grid in both, so any grid is enough.
struct RowLaunch {
    cudaLaunchConfig_t config{};
    cudaError_t status = cudaSuccess;

    // `rows_each` rows and `columns_each` packs of each are a thread's to hold at once.
    RowLaunch(int64_t rows, int64_t row_packs, int rows_each, int columns_each, void* stream) {
        // A warp's accesses are contiguous before a thread gets a second one.
        int lanes = 1;
        while (lanes < block_threads && lanes < row_packs &&
               (lanes < 32 || static_cast<int64_t>(lanes) * columns_each < row_packs)) {
            lanes *= 2;
        }
        int device = 0, processors = 0;
        status = cudaGetDevice(&device);
        if (status == cudaSuccess) {
            status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
        }
        const int groups = block_threads / lanes;
        const int64_t most = processors * blocks_each;
        const int64_t across = least(ceil_div(row_packs, static_cast<int64_t>(lanes) * columns_each), most);
        const int64_t down = ceil_div(rows, static_cast<int64_t>(groups) * rows_each);
        config.blockDim = dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(groups), 1);
        config.gridDim = dim3(static_cast<unsigned>(across),
                              static_cast<unsigned>(least(down, least(ceil_div(most, across), 65535))), 1);
        config.stream = static_cast<cudaStream_t>(stream);
    }

    static int64_t least(int64_t a, int64_t b) {
        const int64_t value = a < b ? a : b;
        return value < 1 ? 1 : value;
    }

    // Starts the kernel and returns the error's number, 0 for none.
    template <class... Expected, class... Given>
    int32_t run(void (*kernel)(Expected...), Given... given) {
        if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, kernel, given...);
        // A refused launch must not turn up again at somebody else's next check.
        if (status != cudaSuccess) cudaGetLastError();
        return static_cast<int32_t>(status);
    }
};

}  // namespace fv
