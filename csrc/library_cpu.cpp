// What belongs to the library and not to a kernel: the thread pool, the instruction set, the source hash.
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "parallel.h"
#include "simd.h"

namespace fv {
namespace {

std::atomic<fv_parallel_for_t> pool{nullptr};

Level best_level() {
#ifdef FV_X86
    __builtin_cpu_init();
    bool fused = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (fused && wide) return avx512;
    if (fused) return avx2;
#endif
    return baseline;
}

std::atomic<Level> level{best_level()};

}  // namespace

fv_parallel_for_t thread_pool() { return pool.load(std::memory_order_acquire); }

Level cpu_level() { return level.load(std::memory_order_relaxed); }

void pool_failed() {
    std::fputs("fastvivit: a thread failed or memory ran out, and an output is incomplete\n", stderr);
    std::abort();
}

}  // namespace fv

// Sets the function that every kernel's threads come from.
FV_API void fv_init(fv_parallel_for_t parallel_for) {
    fv::pool.store(parallel_for, std::memory_order_release);
}

// Hash of the sources this library was built from.
FV_API const char* fv_source_hash(void) { return FV_SOURCE_HASH; }

// "avx512", "avx2" or "baseline".
FV_API const char* fv_cpu_level(void) {
    switch (fv::cpu_level()) {
        case fv::avx512:
            return "avx512";
        case fv::avx2:
            return "avx2";
        default:
            return "baseline";
    }
}

// For tests: 0 baseline, 1 avx2, 2 avx512, lowered to what this CPU has; a negative level restores the best.
FV_API void fv_set_cpu_level(int32_t wanted) {
    int32_t best = fv::best_level();
    fv::level.store(static_cast<fv::Level>(wanted < 0 || wanted > best ? best : wanted));
}
