// Threads are borrowed: Python hands over torch's own parallel_for once, so a process keeps one thread pool
// and torch.set_num_threads holds here too.
#pragma once

#include <cstdint>

#include "macros.h"

typedef void (*fv_body)(int64_t begin, int64_t end, void* context);
typedef int32_t (*fv_parallel_for_t)(int64_t begin, int64_t end, int64_t grain, fv_body body, void* context);

namespace fv {

// Null until fv_init: everything then runs in the calling thread.
fv_parallel_for_t thread_pool();

// Ends the process: a pool that failed half-way has left part of an output unwritten.
[[noreturn]] void pool_failed();

// Calls body(begin, end) on disjoint ranges of at least `grain` that cover begin..end. The split depends on
// the number of threads, so a body may not reduce over its range.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
    if (begin >= end) return;
    fv_parallel_for_t pool = end - begin > grain ? thread_pool() : nullptr;
    if (pool == nullptr) return body(begin, end);
    fv_body call = [](int64_t first, int64_t last, void* context) {
        (*static_cast<const Body*>(context))(first, last);
    };
    if (pool(begin, end, grain, call, const_cast<Body*>(&body)) != 0) pool_failed();
}

// Rows a thread must have for about 64 KiB of output, below which waking it costs more than it saves.
inline int64_t rows_per_thread(int64_t row_bytes) {
    constexpr int64_t bytes = 64 * 1024;
    return row_bytes >= bytes ? 1 : bytes / (row_bytes > 0 ? row_bytes : 1);
}

}  // namespace fv
