// Random numbers that are a pure function of seed and counter: musicrt/runtime/noise.py.
#pragma once

struct Words {
    unsigned word[4];
};

// `philox`: ten rounds of Philox4x32 (Salmon et al., SC 2011).
__device__ inline Words philox(Words counter, unsigned long long seed) {
    unsigned a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
    unsigned key0 = static_cast<unsigned>(seed), key1 = static_cast<unsigned>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const unsigned long long first = a * 0xD2511F53ull, second = c * 0xCD9E8D57ull;
        a = static_cast<unsigned>(second >> 32) ^ b ^ key0;
        b = static_cast<unsigned>(second);
        c = static_cast<unsigned>(first >> 32) ^ d ^ key1;
        d = static_cast<unsigned>(first);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

struct Normals {
    float value[4];
};

// `normal_columns`: four standard normal numbers of a column, by the Box-Muller transform in float64. Rounded to float, they differ from
// NumPy's where the last bit of a logarithm, sine or cosine decides, which is about once in 10**8. Not inlined, for the compiler's sake: a
// sine in float64 is long, and there are many kernels.
__device__ __noinline__ Normals normals(Words counter, unsigned long long seed) {
    const Words words = philox(counter, seed);
    Normals result;
    for (int pair = 0; pair < 4; pair += 2) {
        const double uniform = (words.word[pair] + 0.5) * 0x1p-32, turn = (words.word[pair + 1] + 0.5) * 0x1p-32;
        const double radius = sqrt(-2.0 * log(uniform)), angle = 6.283185307179586 * turn;
        result.value[pair] = static_cast<float>(radius * cos(angle));
        result.value[pair + 1] = static_cast<float>(radius * sin(angle));
    }
    return result;
}

// `uniform_numbers`: number `index` of a draw, in [0, 1).
__device__ inline double uniform(unsigned index, unsigned draw, unsigned long long seed) {
    const Words words = philox({{index, draw, 0u, 0xFFFFFFFFu}}, seed);
    const unsigned long long bits = (static_cast<unsigned long long>(words.word[0]) << 21) | (words.word[1] >> 11);
    return static_cast<double>(bits) * 0x1p-53;
}
