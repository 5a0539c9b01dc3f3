// The condition of a WHILE node around a step of the language model: musicrt/runtime/loops/autoregressive.py, `write_columns`.
#include "state.cuh"

extern "C" __device__ __cudart_builtin__ void CUDARTAPI cudaGraphSetConditional(unsigned long long handle, unsigned int value);

extern "C" __global__ void go_on(unsigned long long handle, const State* state) { cudaGraphSetConditional(handle, state->goes_on() ? 1u : 0u); }
