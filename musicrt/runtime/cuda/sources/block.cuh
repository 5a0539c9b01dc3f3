// What the threads of a block find out together. All of them have to call these functions; `scratch` has a double for each thread.
#pragma once

constexpr int MOST_THREADS = 512;

struct Sum {
    __device__ double operator()(double a, double b) const { return a + b; }
};

struct Most {
    __device__ double operator()(double a, double b) const { return a > b ? a : b; }
};

struct Least {
    __device__ double operator()(double a, double b) const { return a < b ? a : b; }
};

// Everyone's values combined, always in the same order. Writes before the call are seen by all threads after it.
template <class Combine>
__device__ double reduce(double mine, double* scratch, Combine combine) {
    const unsigned me = threadIdx.x;
    scratch[me] = mine;
    unsigned stride = 1;
    while (stride < blockDim.x) stride *= 2;
    while (stride /= 2) {
        __syncthreads();
        if (me < stride && me + stride < blockDim.x) scratch[me] = combine(scratch[me], scratch[me + stride]);
    }
    __syncthreads();
    const double result = scratch[0];
    __syncthreads();
    return result;
}

// The sum of the values of the threads before this one; `total` is that of all.
__device__ inline double sum_before(double mine, double* scratch, double& total) {
    const unsigned me = threadIdx.x;
    scratch[me] = mine;
    for (unsigned stride = 1; stride < blockDim.x; stride *= 2) {
        __syncthreads();
        const double other = me >= stride ? scratch[me - stride] : 0.0;
        __syncthreads();
        scratch[me] += other;
    }
    __syncthreads();
    const double before = me ? scratch[me - 1] : 0.0;
    total = scratch[blockDim.x - 1];
    __syncthreads();
    return before;
}

// Sorts pairs, in a number that is a power of two: values fall, and equal ones keep the order of their indices, as NumPy's stable sort of the
// negated values has it. Bitonic: pairs that are `stride` apart are put in order, in runs of `size` that fall and rise in turn.
__device__ inline void sort_falling(float* values, unsigned short* indices, int count) {
    for (int size = 2; size <= count; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < count / 2; pair += blockDim.x) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const float a = values[low], b = values[high];
                const unsigned short i = indices[low], j = indices[high];
                const bool swapped = b > a || (b == a && j < i), falling = (low & size) == 0;
                if (swapped == falling) {
                    values[low] = b, values[high] = a;
                    indices[low] = j, indices[high] = i;
                }
            }
        }
    }
    __syncthreads();
}
