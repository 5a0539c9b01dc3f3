// A step of each sampler on one value, in the order of operations of its NumPy function, so that the results are equal bit for bit.
//
// `begin` makes the first input of the network from draw 0 and row 0 of the coefficients; `step` number k, from 1 on, takes the guided output
// of the network, draw k and row k. `x` is the network's input, `state` what the sampler keeps for the next step.
#pragma once

// musicrt/runtime/loops/ddim.py, `step`.
struct Ddim {
    struct Row {
        float sqrt_a_t, sqrt_one_minus_a_t, direction, sqrt_a_prev, sigma;
    };
    static constexpr bool carries = false, holds = false;

    __device__ static void begin(float& x, float&, float noise, const Row&) { x = noise; }

    __device__ static void step(float& x, float&, float v, float noise, const Row& row) {
        const float clean = row.sqrt_a_t * x - row.sqrt_one_minus_a_t * v;
        const float predicted = (v * row.sqrt_a_t + row.sqrt_one_minus_a_t * x) * row.direction;
        x = clean * row.sqrt_a_prev + predicted + row.sigma * noise;
    }
};

// musicrt/runtime/loops/dpmsolver.py, `step`. The state is the clean signal of the step before; row 1 gives it no weight.
struct DpmSolver {
    struct Row {
        float sqrt_a_t, sqrt_one_minus_a_t, keep, current, previous;
    };
    static constexpr bool carries = true, holds = false;

    __device__ static void begin(float& x, float& state, float noise, const Row&) {
        x = noise;
        state = 0.0f;
    }

    __device__ static void step(float& x, float& state, float v, float, const Row& row) {
        const float clean = row.sqrt_a_t * x - row.sqrt_one_minus_a_t * v;
        x = x * row.keep + row.current * clean + row.previous * state;
        state = clean;
    }
};

// musicrt/runtime/loops/flow.py, `step`, and `hold` before the next one. The state is the initial noise, on whose way known frames are held.
struct Flow {
    struct Row {
        float size, noise_weight, time;
    };
    static constexpr bool carries = true, holds = true;

    __device__ static void begin(float& x, float& state, float noise, const Row&) { x = state = noise; }

    __device__ static void step(float& x, float&, float velocity, float, const Row& row) { x = x + velocity * row.size; }

    __device__ static void hold(float& x, float state, float known, const Row& row) { x = row.noise_weight * state + row.time * known; }
};

// musicrt/runtime/loops/consistency.py: `combine`, then `renoise` and `scale_input` of the next step. The state is the noisy signal.
// In the last row, noise_scale is 0 and c_in is 1: what is left in x is the clean signal.
struct Consistency {
    struct Row {
        float c_skip, c_out, noise_scale, c_in;
    };
    static constexpr bool carries = true, holds = false;

    __device__ static void begin(float& x, float& state, float noise, const Row& row) {
        state = noise * row.noise_scale;
        x = state * row.c_in;
    }

    __device__ static void step(float& x, float& state, float output, float noise, const Row& row) {
        const float clean = output * row.c_out + row.c_skip * state;
        state = noise * row.noise_scale + clean;
        x = state * row.c_in;
    }
};
