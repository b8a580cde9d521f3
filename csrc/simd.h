// One source, several instruction sets: a kernel is a struct with an always-inlined generic `run`, and
// dispatch() instantiates it once per level inside a function that carries the target attribute. The level is
// read from the CPU at run time, so one binary serves every machine of its architecture.
#pragma once

#include <cstdint>

#include "macros.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FV_X86 1
#define FV_AVX2 __attribute__((target("avx2,fma,f16c")))
#define FV_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
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

}  // namespace fv
