// Where the values of a signal lie, and the noise of each: a thread has four values of a column, as Philox gives four normal numbers.
#pragma once

#include "philox.cuh"

// float32 [batch, planes, bins, frames], or [batch, planes, frames, bins]. A column is what a frame has: planes x bins rows.
struct Extent {
    int batch, planes, bins, frames, frames_last;

    __device__ size_t count() const { return static_cast<size_t>(batch) * planes * bins * frames; }
};

// Up to four bins of one plane and frame: `size` of them, from index `at` of the signal on, `stride` apart.
struct Quad {
    int item, plane, bin, frame, size;
    size_t at, stride;
};

// The quad of this thread; its size is 0 if there is none left. Threads side by side have values side by side.
__device__ inline Quad find_quad(const Extent& extent) {
    const unsigned in_plane = (extent.bins + 3) / 4, frames = extent.frames;
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned inner = thread % (in_plane * frames);
    thread /= in_plane * frames;
    Quad quad;
    quad.plane = thread % extent.planes;
    quad.item = thread / extent.planes;
    quad.frame = extent.frames_last ? inner % frames : inner / in_plane;
    quad.bin = 4 * (extent.frames_last ? inner / frames : inner % in_plane);
    quad.size = quad.item < extent.batch ? min(4, extent.bins - quad.bin) : 0;
    quad.stride = extent.frames_last ? frames : 1;
    quad.at = static_cast<size_t>(thread) * extent.bins * frames;
    quad.at += extent.frames_last ? static_cast<size_t>(quad.bin) * frames + quad.frame : static_cast<size_t>(quad.frame) * extent.bins + quad.bin;
    return quad;
}

// Either `given`, float32 [draws, count], or by `seed` [1] and `places` [batch, 2], channel and first frame of each item; or none.
struct Noise {
    const float* given;
    const unsigned long long* seed;
    const int* places;
    int draw;
};

// The noise of a quad. That of a seed is defined for columns that are cut into quads without a rest.
__device__ inline Normals draw_noise(const Extent& extent, const Noise& noise, const Quad& quad) {
    Normals result = {};
    if (noise.seed && quad.size) {
        const unsigned channel = noise.places[2 * quad.item], frame = noise.places[2 * quad.item + 1] + quad.frame;
        const unsigned first = (quad.plane * extent.bins + quad.bin) / 4, draw = noise.draw;
        result = normals({{first, frame, channel, draw}}, *noise.seed);
    } else if (noise.given) {
        const float* values = noise.given + noise.draw * extent.count() + quad.at;
        for (int part = 0; part < 4; ++part) {  // as many as are known to the compiler, so that they stay in registers
            if (part < quad.size) result.value[part] = values[part * quad.stride];
        }
    }
    return result;
}
