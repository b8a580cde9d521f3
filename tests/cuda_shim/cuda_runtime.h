// Stands in for CUDA's header, so that csrc/*_cuda.cu compiles as C++ and its kernels run on a CPU: thread
// after thread, block after block. It knows what those sources use, refuses the launches that a device would
// refuse, and has no warp or shared memory operations, because no kernel there needs one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t : int {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorMisalignedAddress = 716,
};

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

typedef struct CUstream_st* cudaStream_t;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    void* attrs = nullptr;
    unsigned numAttrs = 0;
};

// What tests set and read: a small device, so that grids must stride; the order of blocks; an error to come.
struct Shim {
    int processors = 1;
    int backwards = 0;
    int fail = 0;
    int64_t launches = 0;
    int64_t blocks = 0;
};

inline Shim shim;

inline const char* cudaGetErrorString(cudaError_t status) {
    switch (status) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorMisalignedAddress:
            return "misaligned address";
    }
    return "unrecognized error code";
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = shim.processors;
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return cudaSuccess;
}

inline long long atomicMax(long long* at, long long value) {
    const long long before = *at;
    if (value > before) *at = value;
    return before;
}

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Given&&... given) {
    const dim3 grid = config->gridDim, block = config->blockDim;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const bool fits = grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 && block.z <= 64;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024 || !fits) {
        return cudaErrorInvalidConfiguration;
    }
    if (shim.fail != 0) {
        const cudaError_t status = static_cast<cudaError_t>(shim.fail);
        shim.fail = 0;
        return status;
    }
    const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
    shim.launches += 1;
    shim.blocks += blocks;
    gridDim = grid;
    blockDim = block;
    for (int64_t i = 0; i < blocks; ++i) {
        const int64_t b = shim.backwards ? blocks - 1 - i : i;
        blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                        static_cast<unsigned>(b / grid.x / grid.y));
        for (uint64_t t = 0; t < threads; ++t) {
            threadIdx = dim3(static_cast<unsigned>(t % block.x), static_cast<unsigned>(t / block.x % block.y),
                             static_cast<unsigned>(t / block.x / block.y));
            kernel(given...);
        }
    }
    return cudaSuccess;
}
