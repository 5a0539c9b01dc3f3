// Choosing a token of a row of logits by one uniform number, by all threads of a block: musicrt/runtime/loops/sampling.py.
//
// Weights are float32 and their sums float64, as there; exponentials and the sums that weights are divided by may differ from NumPy's in their
// last bit. So the choice is another one where that bit decides: if the uniform number is within about 1e-7 of where a token begins.
#pragma once

#include "block.cuh"

constexpr int MOST_CARD = 4096;

// `choice_settings` of musicrt/runtime/cuda/arguments.py, float32 [4].
struct Settings {
    float guidance, temperature, top_p, top_k;
};

// The memory that threads share, 44 KiB. `values` hold logits, then weights; `sorted` weights that fall, of the tokens in `order`.
struct Table {
    float values[MOST_CARD], sorted[MOST_CARD];
    unsigned short order[MOST_CARD];
    double scratch[MOST_THREADS];
};

// A thread's part of a row, in one piece: entries `first` to `last` - 1.
struct Part {
    int first, last;

    __device__ explicit Part(int count) {
        const int size = (count + blockDim.x - 1) / blockDim.x, start = size * threadIdx.x;
        first = start < count ? start : count;
        last = first + size < count ? first + size : count;
    }
};

// `_normalise`: of this thread's part. Gives all threads time to see it.
__device__ inline void normalise(float* weights, const Part& part, double* scratch) {
    double sum = 0.0;
    for (int i = part.first; i < part.last; ++i) sum += weights[i];
    const float total = static_cast<float>(reduce(sum, scratch, Sum()));
    for (int i = part.first; i < part.last; ++i) weights[i] /= total;
    __syncthreads();
}

// `pick`: the first entry with a weight whose cumulative sum exceeds u of the total.
__device__ inline int pick(const float* weights, const Part& part, double u, double* scratch) {
    double sum = 0.0, total;
    for (int i = part.first; i < part.last; ++i) sum += weights[i];
    sum = sum_before(sum, scratch, total);
    int found = MOST_CARD, last = 0;
    for (int i = part.first; i < part.last; ++i) {
        sum += weights[i];
        if (weights[i] == 0.0f) continue;
        last = i;
        if (found == MOST_CARD && sum / total > u) found = i;
    }
    found = static_cast<int>(reduce(found, scratch, Least()));
    last = static_cast<int>(reduce(last, scratch, Most()));
    return found < MOST_CARD ? found : last;  // sums that were rounded apart may leave a gap below 1
}

__device__ inline void sort_weights(Table& table, int card) {
    int count = 1;
    while (count < card) count *= 2;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        table.sorted[i] = i < card ? table.values[i] : -1.0f;
        table.order[i] = static_cast<unsigned short>(i);
    }
    sort_falling(table.sorted, table.order, count);
}

// `_first_largest`.
__device__ inline int first_of(const float* values, const Part& part, float wanted, double* scratch) {
    int found = MOST_CARD;
    for (int i = part.last - 1; i >= part.first; --i) {
        if (values[i] == wanted) found = i;
    }
    return static_cast<int>(reduce(found, scratch, Least()));
}

// `Sampling.choose` on the values of a table, logits that were divided by the temperature, the largest of which is `largest`.
__device__ __noinline__ int choose_token(Table& table, int card, float largest, const Settings& settings, double u) {
    const Part part(card);
    float* weights = table.values;
    for (int i = part.first; i < part.last; ++i) weights[i] = expf(weights[i] - largest);
    normalise(weights, part, table.scratch);
    if (settings.top_p > 0.0f) {
        sort_weights(table, card);
        double sum = 0.0, total;
        for (int i = part.first; i < part.last; ++i) sum += table.sorted[i];
        sum = sum_before(sum, table.scratch, total);
        for (int i = part.first; i < part.last; ++i) {
            sum += table.sorted[i];
            if (static_cast<float>(sum) - table.sorted[i] > settings.top_p) table.sorted[i] = 0.0f;
        }
        normalise(table.sorted, part, table.scratch);
        return table.order[pick(table.sorted, part, u, table.scratch)];
    }
    if (settings.top_k > 0.0f) {
        sort_weights(table, card);
        const float threshold = table.sorted[static_cast<int>(settings.top_k) - 1];
        for (int i = part.first; i < part.last; ++i) {
            if (weights[i] < threshold) weights[i] = 0.0f;
        }
        normalise(weights, part, table.scratch);
    }
    return pick(weights, part, u, table.scratch);
}
