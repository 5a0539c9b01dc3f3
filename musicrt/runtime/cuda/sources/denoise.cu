// Guidance, a sampler's step and the network's next input in one launch: what musicrt/runtime/loops does with a whole array at a time.
#include "half.cuh"
#include "signal.cuh"
#include "solvers.cuh"

// What the first frames of the result are known to be: float32 [batch, planes, frames, bins].
struct Known {
    const float* values;
    int frames;
};

// Reads the values of a quad and their states, calls `change(x, state, part)`, puts known frames back, and writes both.
template <class Solver, class Change>
__device__ void update(const Extent& extent, const Quad& quad, float* x, float* state, const typename Solver::Row& row, const Known& known,
                       Change change) {
    x += quad.at;
    if constexpr (Solver::carries) state += quad.at;
    for (int part = 0; part < 4; ++part) {
        if (part >= quad.size) return;
        const size_t at = part * quad.stride;
        float value = x[at], carried = 0.0f;
        if constexpr (Solver::carries) carried = state[at];
        change(value, carried, part);
        if constexpr (Solver::holds) {
            if (quad.frame < known.frames) {
                const size_t frame = (static_cast<size_t>(quad.item) * extent.planes + quad.plane) * known.frames + quad.frame;
                Solver::hold(value, carried, known.values[frame * extent.bins + quad.bin + part], row);
            }
        }
        x[at] = value;
        if constexpr (Solver::carries) state[at] = carried;
    }
}

template <class Solver>
__device__ void begin(const Extent& extent, float* x, float* state, const typename Solver::Row& row, const Noise& noise, const Known& known) {
    const Quad quad = find_quad(extent);
    const Normals drawn = draw_noise(extent, noise, quad);
    update<Solver>(extent, quad, x, state, row, known,
                   [&](float& value, float& carried, int part) { Solver::begin(value, carried, drawn.value[part], row); });
}

template <class Solver, class Number>
__device__ void step(const Extent& extent, float* x, float* state, const Number* v, int rows, const float* guidance,
                     const typename Solver::Row& row, const Noise& noise, const Known& known) {
    const Quad quad = find_quad(extent);
    const Normals drawn = draw_noise(extent, noise, quad);
    update<Solver>(extent, quad, x, state, row, known, [&](float& value, float& carried, int part) {
        const float guided = guide(v, rows, *guidance, extent.count(), quad.at + part * quad.stride);
        Solver::step(value, carried, guided, drawn.value[part], row);
    });
}

#define DENOISER(NAME, SOLVER)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) NAME##_begin(Extent extent, float* x, float* state, const SOLVER::Row* row,          \
                                                                   Noise noise, const float* known, int held) {                            \
        begin<SOLVER>(extent, x, state, *row, noise, {known, held});                                                                        \
    }                                                                                                                                       \
    DENOISER_STEP(NAME##_step_float, SOLVER, float)                                                                                         \
    DENOISER_STEP(NAME##_step_half, SOLVER, half)

#define DENOISER_STEP(NAME, SOLVER, NUMBER)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) NAME(Extent extent, float* x, float* state, const NUMBER* v, int rows,               \
                                                           const float* guidance, const SOLVER::Row* row, Noise noise, const float* known, \
                                                           int held) {                                                                     \
        step<SOLVER>(extent, x, state, v, rows, guidance, *row, noise, {known, held});                                                      \
    }

DENOISER(ddim, Ddim)
DENOISER(dpm_solver, DpmSolver)
DENOISER(flow, Flow)
DENOISER(consistency, Consistency)
