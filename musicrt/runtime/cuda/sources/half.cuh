// Numbers that networks give: float, and 16-bit floats of IEEE 754, which are numpy.float16.
#pragma once

struct half {
    unsigned short bits;
};

__device__ inline float widen(float value) { return value; }

// Exact for every value, subnormal ones included: the exponent is moved to that of a float by a multiplication by 2**112.
__device__ inline float widen(half value) {
    const unsigned magnitude = (value.bits & 0x7fffu) << 13, sign = (value.bits & 0x8000u) << 16;
    const bool finite = (value.bits & 0x7c00u) != 0x7c00u;
    const unsigned bits = finite ? __float_as_uint(__uint_as_float(magnitude) * 0x1p112f) : magnitude | 0x7f800000u;
    return __uint_as_float(bits | sign);
}

// Classifier-free guidance: musicrt/runtime/loops/diffusion.py, `guide`. Row 1 of `values` begins `count` values behind row 0.
template <class Number>
__device__ float guide(const Number* values, int rows, float scale, size_t count, size_t index) {
    const float conditional = widen(values[index]);
    if (rows == 1) return conditional;
    const float other = widen(values[count + index]);
    return (conditional - other) * scale + other;
}
