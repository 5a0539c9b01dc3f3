// A column of tokens from the logits of a language model, written into the sequence and prepared as the next input: a block for each row, in the
// order batch, codebook. What the host does: musicrt/runtime/loops/autoregressive.py, `write_columns`.
#include "half.cuh"
#include "philox.cuh"
#include "sampling.cuh"
#include "state.cuh"

// The random numbers: `seed` [1] (SeededNumbers: a codebook's are the same in all of a batch), or `uniforms`, float64 [calls, rows]; or none.
struct Numbers {
    const unsigned long long* seed;
    const double* uniforms;

    __device__ double draw(int call, int row, int codebook) const {
        if (seed) return uniform(codebook, call, *seed);
        return uniforms ? uniforms[static_cast<size_t>(call) * gridDim.x + row] : 0.0;
    }
};

// `DelayPattern.mask`: whether a column holds a token of a codebook with this delay; `lag` is the last codebook's.
__device__ inline bool holds_token(int column, int end, int delay, int lag) {
    const int time = column - 1 - delay;
    return time >= 0 && time < end - 1 - lag;
}

// Fills `table.values` with guided logits over the temperature; the largest of them. What is NaN or +inf counts as -inf, and is `bad`; so is a
// row that is nothing but -inf. `stride`: from one row of logits to the next.
template <class Number>
__device__ float read_logits(Table& table, const Number* logits, int card, size_t stride, const Settings& settings, bool& bad) {
    const float infinity = __uint_as_float(0x7f800000u);
    float largest = -infinity;
    bool mine = false;
    for (int i = threadIdx.x; i < card; i += blockDim.x) {
        float value = guide(logits, 2, settings.guidance, gridDim.x * stride, blockIdx.x * stride + i);
        if (settings.temperature > 0.0f) value /= settings.temperature;
        if (!(value < infinity)) {
            mine = true;
            value = -infinity;
        }
        if (value > largest) largest = value;
        table.values[i] = value;
    }
    largest = static_cast<float>(reduce(largest, table.scratch, Most()));
    bad = reduce(mine ? 1.0 : 0.0, table.scratch, Most()) > 0.0 || largest == -infinity;
    return largest;
}

// `TokenSequence.write` for one place: a token that is known stays, and outside of the pattern there are only special ones.
__device__ inline void write_token(long long* place, long long* fed, long long token) {
    if (*place == -1) *place = token;
    *fed = *place;
}

// The last block to arrive goes on to the next column. Until then nobody changes the counters that all read when they begin.
__device__ inline void arrive(State* state, int column, bool bad, long long* length) {
    if (bad) atomicCAS(&state->failed, 0, column);
    __threadfence();
    if (atomicAdd(&state->arrived, 1) + 1 < static_cast<int>(gridDim.x)) return;
    *length = column;
    state->arrived = 0;
    state->column = column + 1;
    state->call += 1;
}

template <class Number>
__device__ void choose(const Number* logits, int codebooks, int card, int columns, int room, const Settings& settings, const Numbers& numbers,
                       const int* delays, long long special, long long* tokens, long long* fed, long long* length, State* state) {
    __shared__ Table table;
    const int row = blockIdx.x, codebook = row % codebooks, column = state->column, stop = state->stop, end = state->end, call = state->call;
    if (column >= stop) return;
    const size_t stride = static_cast<size_t>(columns) * card;
    bool bad;
    const float largest = read_logits(table, logits + stride - card, card, stride, settings, bad);
    int token;
    if (settings.temperature == 0.0f || largest == -__uint_as_float(0x7f800000u)) {
        token = first_of(table.values, Part(card), largest, table.scratch);
    } else {
        token = choose_token(table, card, largest, settings, numbers.draw(call, row, codebook));
    }
    if (threadIdx.x != 0) return;
    const bool inside = holds_token(column, end, delays[codebook], delays[codebooks - 1]);
    write_token(tokens + static_cast<size_t>(row) * room + column, fed + row, inside ? token : special);
    arrive(state, column, bad, length);
}

#define CHOOSE(NAME, NUMBER)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS)                                                                             \
    NAME(const NUMBER* logits, int codebooks, int card, int columns, int room, const Settings* settings, const unsigned long long* seed,   \
         const double* uniforms, const int* delays, long long special, long long* tokens, long long* fed, long long* length, State* state) { \
        choose(logits, codebooks, card, columns, room, *settings, Numbers{seed, uniforms}, delays, special, tokens, fed, length, state);    \
    }

CHOOSE(choose_float, float)
CHOOSE(choose_half, half)
