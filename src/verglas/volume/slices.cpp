// Sampling of slices and its transpose, for slices_native.py.

#include "volume/slices.h"

namespace {

// What a pixel adds to two neighbours in x: real, imaginary, weight of the near one, then of the far one.
struct Pair {
#ifdef __AVX512VL__
    __m256 both;

    Pair(float real, float imaginary, float weight, float fx) {
        const __m256 value = _mm256_setr_ps(real, imaginary, weight, real, imaginary, weight, 0, 0);
        const float near = 1 - fx;
        both = _mm256_mul_ps(value, _mm256_setr_ps(near, near, near, fx, fx, fx, 0, 0));
    }

    void add(float* corner, float share) const {
        const __m256 before = _mm256_maskz_loadu_ps(0x3F, corner);
        _mm256_mask_storeu_ps(corner, 0x3F, _mm256_fmadd_ps(_mm256_set1_ps(share), both, before));
    }
#else
    float4v first;
    float2v second;

    Pair(float real, float imaginary, float weight, float fx) {
        first = float4v{real * (1 - fx), imaginary * (1 - fx), weight * (1 - fx), real * fx};
        second = float2v{imaginary * fx, weight * fx};
    }

    void add(float* corner, float share) const {
        const float4v early = load<float4v>(corner) + share * first;
        const float2v late = load<float2v>(corner + 4) + share * second;
        std::memcpy(corner, &early, sizeof early);
        std::memcpy(corner + 4, &late, sizeof late);
    }
#endif
};

// The map of slice i: the first where none is told.
inline int64_t map_of(const int64_t* which, int64_t i) { return which ? which[i] : 0; }

}  // namespace

extern "C" {

// Slices [n, k] (complex) of the maps which [n] at matrices [n, 3, 3]. which may be null.
void project(const float* tables, const Grid* grid, const Plane* plane, const float* matrices, const int64_t* which, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i++) {
        const float* table = tables + 2 * grid->stride_map * map_of(which, i);
        sample(table, *grid, matrices + 9 * i, *plane, out + 2 * i * plane->k);
    }
}

// Adds slices to the sums [maps, z, y, x, 3] (real, imaginary, weight) of the maps which [n], on the planes z (of flat maps: rows y) from
// `first` to `last` alone: threads with planes of their own add everything, and each point gets its shares in the same order, however
// many threads there are. which and weights may be null.
void spread(float* all_sums, const Grid* grid, const Plane* plane, const float* matrices, const int64_t* which, int64_t n,
            const float* values, const float* weights, int64_t first, int64_t last) {
    Points points;
    const bool flat = grid->stride_z == 0;
    for (int64_t i = 0; i < n; i++) {
        float* sums = all_sums + 3 * grid->stride_map * map_of(which, i);
        for (int64_t from = 0; from < plane->count; from += BLOCK) {
            const int here = locate(points, *grid, matrices + 9 * i, *plane, from);
            for (int j = 0; j < here; j++) {
                const int64_t at = points.plane[j];
                if (at + 1 < first || at >= last) continue;
                const int64_t place = i * plane->k + from + j;
                const Pair pair(values[2 * place], points.sign[j] * values[2 * place + 1], weights ? weights[place] : 0.0f, points.fx[j]);
                const float share_z[2] = {1 - points.fz[j], points.fz[j]}, share_y[2] = {1 - points.fy[j], points.fy[j]};
                for (int up = 0; up < (flat ? 1 : 2); up++) {
                    for (int right = 0; right < 2; right++) {
                        const int64_t own = at + (flat ? right : up);
                        if (own < first || own >= last) continue;
                        float* corner = sums + 3 * (points.corner[j] + up * grid->stride_z + right * grid->stride_y);
                        pair.add(corner, share_z[up] * share_y[right]);
                    }
                }
            }
        }
    }
}
}
