// How a function is exported and inlined, whatever compiles it.
#pragma once

#if defined(_WIN32)
#define FV_API extern "C" __declspec(dllexport)
#else
#define FV_API extern "C" __attribute__((visibility("default")))
#endif

#if defined(__CUDACC__)
#define FV_INLINE __host__ __device__ __forceinline__
#define FV_RESTRICT __restrict__
#elif defined(_MSC_VER) && !defined(__clang__)
#define FV_INLINE __forceinline
#define FV_RESTRICT __restrict
#else
#define FV_INLINE inline __attribute__((always_inline))
#define FV_RESTRICT __restrict__
#endif

#ifndef FV_SOURCE_HASH
#define FV_SOURCE_HASH ""
#endif
