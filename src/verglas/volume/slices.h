// Points of central slices on the grid of a map's transform, and linear sampling there. The twin in torch is slices.py, which defines both.
//
// The grid keeps x >= 0, centred in y and z ("half" is the index of the origin there). Slice pixels are (kx, ky), cycles a box;
// a point is padding * A^T (kx, ky, 0), turned to x >= 0 by taking the mate. A flat map is a grid whose stride_z is 0. Maps that share a
// grid lie one after the other.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float float2v __attribute__((vector_size(8)));
typedef float float4v __attribute__((vector_size(16)));

constexpr int BLOCK = 256;  // pixels whose points are found at once, by vector instructions

struct Grid {
    int64_t stride_y, stride_z, stride_map;  // in grid points
    float half, padding;
};

struct Plane {  // pixels from `count` to `k` only fill rows up
    const float *kx, *ky;
    int64_t count, k;
};

struct Points {  // of a block of pixels: the lowest corner, distances from it, sign of the imaginary part
    alignas(64) int64_t plane[BLOCK];  // z, of a flat map y
    alignas(64) int64_t corner[BLOCK];
    alignas(64) float fx[BLOCK], fy[BLOCK], fz[BLOCK], sign[BLOCK];
};

template <class Vector>
inline Vector load(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline int locate(Points& points, const Grid& grid, const float* matrix, const Plane& plane, int64_t from) {
    const int here = (int)std::min<int64_t>(BLOCK, plane.count - from);
    const float *kx = plane.kx + from, *ky = plane.ky + from;
    float a[6];
    for (int entry = 0; entry < 6; entry++) a[entry] = matrix[entry] * grid.padding;
    const int64_t stride_y = grid.stride_y, stride_z = grid.stride_z;
    const float half = grid.half;
    for (int j = 0; j < here; j++) {
        float x = kx[j] * a[0] + ky[j] * a[3], y = kx[j] * a[1] + ky[j] * a[4], z = kx[j] * a[2] + ky[j] * a[5];
        const float sign = x < 0 ? -1.0f : 1.0f;
        x *= sign;
        y = y * sign + half;
        z = z * sign + half;
        const int ix = (int)x, iy = (int)y, iz = (int)z;
        points.fx[j] = x - (float)ix;
        points.fy[j] = y - (float)iy;
        points.fz[j] = z - (float)iz;
        points.sign[j] = sign;
        points.plane[j] = stride_z ? iz : iy;
        points.corner[j] = iz * stride_z + iy * stride_y + ix;
    }
    return here;
}

// One value of a slice: linear in y and z for both neighbours in x at once, then in x.
inline void sample_one(const float* table, const Grid& grid, const Points& points, int j, float* value) {
    const float* corner = table + 2 * points.corner[j];
    const float4v a = load<float4v>(corner), b = load<float4v>(corner + 2 * grid.stride_y);
    const float4v c = load<float4v>(corner + 2 * grid.stride_z), d = load<float4v>(corner + 2 * (grid.stride_z + grid.stride_y));
    const float4v low = a + points.fy[j] * (b - a), high = c + points.fy[j] * (d - c);
    const float4v pair = low + points.fz[j] * (high - low);
    value[0] = pair[0] + points.fx[j] * (pair[2] - pair[0]);
    value[1] = points.sign[j] * (pair[1] + points.fx[j] * (pair[3] - pair[1]));
}

#ifdef __AVX512F__
inline __m512 together(const float* const* corners, int64_t step) {
    const __m512 first = _mm512_castps128_ps512(_mm_loadu_ps(corners[0] + step));
    const __m512 second = _mm512_insertf32x4(first, _mm_loadu_ps(corners[1] + step), 1);
    const __m512 third = _mm512_insertf32x4(second, _mm_loadu_ps(corners[2] + step), 2);
    return _mm512_insertf32x4(third, _mm_loadu_ps(corners[3] + step), 3);
}

inline __m512 each_four_times(const float* values) {
    const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(order, _mm512_castps128_ps512(_mm_loadu_ps(values)));
}

// `sample_one` for four pixels from j on.
inline void sample_four(const float* table, const Grid& grid, const Points& points, int j, float* values) {
    const float* const corners[4] = {table + 2 * points.corner[j], table + 2 * points.corner[j + 1], table + 2 * points.corner[j + 2],
                                     table + 2 * points.corner[j + 3]};
    const __m512 fy = each_four_times(points.fy + j), fz = each_four_times(points.fz + j), fx = each_four_times(points.fx + j);
    const __m512 a = together(corners, 0), b = together(corners, 2 * grid.stride_y);
    const __m512 c = together(corners, 2 * grid.stride_z), d = together(corners, 2 * (grid.stride_z + grid.stride_y));
    const __m512 low = _mm512_fmadd_ps(fy, _mm512_sub_ps(b, a), a), high = _mm512_fmadd_ps(fy, _mm512_sub_ps(d, c), c);
    const __m512 near = _mm512_fmadd_ps(fz, _mm512_sub_ps(high, low), low), far = _mm512_permute_ps(near, 0x4E);
    const __m512 value = _mm512_fmadd_ps(fx, _mm512_sub_ps(far, near), near);
    const __m512 turned = _mm512_mask_mul_ps(value, 0x2222, value, each_four_times(points.sign + j));
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(values, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, turned)));
}
#endif

// The slice (complex, k pixels) of a table [z, y, x] (complex, one more point at the end of each axis).
inline void sample(const float* table, const Grid& grid, const float* matrix, const Plane& plane, float* slice) {
    Points points;
    for (int64_t from = 0; from < plane.count; from += BLOCK) {
        const int here = locate(points, grid, matrix, plane, from);
        int j = 0;
#ifdef __AVX512F__
        for (; j + 4 <= here; j += 4) sample_four(table, grid, points, j, slice + 2 * (from + j));
#endif
        for (; j < here; j++) sample_one(table, grid, points, j, slice + 2 * (from + j));
    }
    std::fill(slice + 2 * plane.count, slice + 2 * plane.k, 0.0f);
}
