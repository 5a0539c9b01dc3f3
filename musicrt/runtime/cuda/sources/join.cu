// Cross-fades of windows: musicrt/runtime/windows.py, `join_windows`, into a result that lies on the device.

// The fade-in at a position of `fade`: `_emit`, with `guard` positions of 0 and of 1 around `centred_ramp` or `inclusive_ramp`.
__device__ inline float rise(int position, int fade, int guard, bool inclusive) {
    const int inner = fade - 2 * guard, step = position - guard;
    if (step < 0) return 0.0f;
    if (step >= inner) return 1.0f;
    if (!inclusive) return (static_cast<float>(step) + 0.5f) / static_cast<float>(inner);
    if (step == inner - 1) return inner > 1 ? 1.0f : 0.0f;
    return static_cast<float>(step * (1.0 / (inner - 1)));
}

// out: float32 [rows, total]; value: float32 [rows, size], of which the first `taken` positions go to `start`, the first `fade` of them mixed
// with what is there.
extern "C" __global__ void __launch_bounds__(256)
join(float* out, const float* value, int rows, int total, int size, int start, int taken, int fade, int guard, int inclusive) {
    const size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread >= static_cast<size_t>(rows) * taken) return;
    const int row = thread / taken, position = thread % taken, most = (fade - 1) / 2;
    float* place = out + static_cast<size_t>(row) * total + start + position;
    const float fresh = value[static_cast<size_t>(row) * size + position];
    if (position >= fade) {
        *place = fresh;
        return;
    }
    const float share = rise(position, fade, guard < most ? guard : most, inclusive);
    *place = fresh * share + *place * (1.0f - share);
}
