// One source, several instruction sets: a kernel is a struct with an always-inlined generic `run`, and
// dispatch() instantiates it once per level inside a function that carries the target attribute. The level is
// read from the CPU at run time, so one binary serves every machine of its architecture.
#pragma once

#include <cstdint>

#include "macros.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FV_X86 1
// Not inlined: a step worth a call keeps the registers to itself.
#define FV_AVX2 __attribute__((noinline, target("avx2,fma,f16c")))
#define FV_AVX512 __attribute__((noinline, target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#endif

namespace fv {

enum Level : int32_t { baseline = 0, avx2 = 1, avx512 = 2 };

Level cpu_level();

#ifdef FV_X86
template <class Kernel, class... Args>
FV_AVX512 void run_avx512(Args... args) {
    Kernel::run(args...);
}

template <class Kernel, class... Args>
FV_AVX2 void run_avx2(Args... args) {
    Kernel::run(args...);
}
#endif

template <class Kernel, class... Args>
void dispatch(Args... args) {
#ifdef FV_X86
    Level level = cpu_level();
    if (level == avx512) return run_avx512<Kernel, Args...>(args...);
    if (level == avx2) return run_avx2<Kernel, Args...>(args...);
#endif
    Kernel::run(args...);
}

// For kernels written in vectors of W floats: Kernel<W> at the W of this CPU. A step of it that is worth a
// call of its own goes through call<W, Step>, which keeps the target attribute.
template <int W, class Step, class... Args>
FV_INLINE void call(Args... args) {
#ifdef FV_X86
    if constexpr (W == 16) return run_avx512<Step, Args...>(args...);
    if constexpr (W == 8) return run_avx2<Step, Args...>(args...);
#endif
    if constexpr (W == 4) Step::run(args...);
}

template <template <int> class Kernel, class... Args>
void dispatch_lanes(Args... args) {
#ifdef FV_X86
    Level level = cpu_level();
    if (level == avx512) return run_avx512<Kernel<16>, Args...>(args...);
    if (level == avx2) return run_avx2<Kernel<8>, Args...>(args...);
#endif
    Kernel<4>::run(args...);
}

}  // namespace fv
