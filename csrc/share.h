// Tasks of unequal length, each with memory to work in, shared by the threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "parallel.h"

namespace fv {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Floats at an alignment of a cache line, given out in pieces.
class Scratch {
  public:
    explicit Scratch(int64_t floats)
        : data_(static_cast<float*>(
              std::aligned_alloc(64, static_cast<size_t>(round_up(floats + 1, 16)) * 4))) {
        if (data_ == nullptr) pool_failed();
        next_ = data_;
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    float* take(int64_t floats) {
        float* taken = next_;
        next_ += round_up(floats, 16);
        return taken;
    }

  private:
    float *data_, *next_;
};

// Calls task(i, scratch) once for each i in 0..tasks-1; threads take the next ones as they get free, which
// changes who computes a task but not what. Short tasks are taken several at a time: neighbours read
// neighbouring memory. `scratch_floats` is what a thread gets to work in.
template <class Task>
void share(int64_t tasks, double flops, int64_t scratch_floats, const Task& task) {
    // About 20 microseconds of work: below that a thread costs more than it brings.
    constexpr double flops_per_thread = 2e6;
    const double threads = std::max(flops / flops_per_thread, 1.0);
    const int64_t grain = std::max<int64_t>(static_cast<int64_t>(static_cast<double>(tasks) / threads), 1);
    std::atomic<int64_t> next{0};
    parallel_for(0, tasks, grain, [&](int64_t, int64_t) {
        int64_t i = next.fetch_add(grain);
        if (i >= tasks) return;
        Scratch scratch(scratch_floats);
        float* begin = scratch.take(0);
        for (; i < tasks; i = next.fetch_add(grain)) {
            for (int64_t end = std::min(i + grain, tasks); i < end; ++i) task(i, begin);
        }
    });
}

}  // namespace fv
