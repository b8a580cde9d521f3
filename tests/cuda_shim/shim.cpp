// The shim's controls, for ctypes.
#include <cuda_runtime.h>

#include "macros.h"

// processors: multiprocessors that the device is said to have; backwards: blocks run last to first; fail:
// what the next launch returns, once.
FV_API void shim_set(int32_t processors, int32_t backwards, int32_t fail) {
    shim.processors = processors;
    shim.backwards = backwards;
    shim.fail = fail;
}

FV_API int64_t shim_launches(void) { return shim.launches; }
FV_API int64_t shim_blocks(void) { return shim.blocks; }
