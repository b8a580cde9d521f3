// What belongs to the CUDA library and not to a kernel: the source hash, the text of an error.
#include <cuda_runtime.h>

#include <cstdint>

#include "macros.h"

// Hash of the sources this library was built from.
FV_API const char* fv_cuda_source_hash(void) { return FV_SOURCE_HASH; }

// What the number means that a launch returned.
FV_API const char* fv_cuda_error(int32_t status) {
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}
