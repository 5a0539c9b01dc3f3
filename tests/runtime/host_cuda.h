// As much of CUDA C++ as the kernels of the package use, for g++: threads of a block are real ones that meet at barriers, blocks run one after
// the other. Kernels without barriers run thread by thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static  // of one block, as blocks do not run at once
#define __cudart_builtin__
#define CUDARTAPI

using std::min;

struct Index {
    unsigned x, y, z;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

class Barrier {
public:
    explicit Barrier(unsigned threads) : threads_(threads) {}

    void wait() {
        const unsigned round = round_;
        if (++arrived_ == threads_) {
            arrived_ = 0;
            ++round_;
        } else {
            while (round_ == round) std::this_thread::yield();
        }
    }

private:
    const unsigned threads_;
    std::atomic<unsigned> arrived_{0}, round_{0};
};
inline Barrier* block_barrier = nullptr;

inline void __syncthreads() {
    if (!block_barrier) {
        std::fputs("a kernel with barriers was launched as one without\n", stderr);
        std::abort();
    }
    block_barrier->wait();
}

inline void __threadfence() {}  // atomics that are sequentially consistent order all that comes before them
inline int atomicAdd(int* place, int value) { return __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST); }
inline int atomicCAS(int* place, int expected, int value) {
    __atomic_compare_exchange_n(place, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

template <class To, class From>
To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "bits of one size");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }

// What a kernel set the condition of a WHILE node to; the handle is the address of it.
extern "C" inline void cudaGraphSetConditional(unsigned long long handle, unsigned int value) { *reinterpret_cast<unsigned*>(handle) = value; }

// Runs a kernel on a grid. arguments: the address of each, as cuLaunchKernel takes them.
template <class... A, std::size_t... I>
void launch(void (*kernel)(A...), void** arguments, unsigned blocks, unsigned threads, bool together, std::index_sequence<I...>) {
    Barrier barrier(threads);
    const auto run = [&](unsigned block, unsigned thread) {
        threadIdx = {thread, 0, 0}, blockIdx = {block, 0, 0}, blockDim = {threads, 1, 1}, gridDim = {blocks, 1, 1};
        kernel(*static_cast<A*>(arguments[I])...);
    };
    if (!together) {
        for (unsigned block = 0; block < blocks; ++block)
            for (unsigned thread = 0; thread < threads; ++thread) run(block, thread);
        return;
    }
    block_barrier = &barrier;
    std::vector<std::thread> workers;
    for (unsigned thread = 0; thread < threads; ++thread)
        workers.emplace_back([&, thread] {
            for (unsigned block = 0; block < blocks; ++block) {
                run(block, thread);
                barrier.wait();
            }
        });
    for (std::thread& worker : workers) worker.join();
    block_barrier = nullptr;
}

template <class... A>
void launch(void (*kernel)(A...), void** arguments, unsigned blocks, unsigned threads, bool together) {
    launch(kernel, arguments, blocks, threads, together, std::index_sequence_for<A...>());
}

// The size of each argument of a kernel; how many there are.
template <class... A>
int sizes_of(void (*)(A...), unsigned* out) {
    const unsigned sizes[] = {sizeof(A)...};
    std::copy(std::begin(sizes), std::end(sizes), out);
    return sizeof...(A);
}

// What Python calls of a kernel.
#define EXPORT(NAME)                                                                                              \
    extern "C" void launch_##NAME(void** arguments, unsigned blocks, unsigned threads, bool together) {           \
        launch(NAME, arguments, blocks, threads, together);                                                       \
    }                                                                                                             \
    extern "C" int sizes_##NAME(unsigned* out) { return sizes_of(NAME, out); }
