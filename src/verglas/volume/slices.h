// Points of central slices on the grid of a map's transform, and linear sampling there. The twin in torch is slices.py, which defines both.
//
// The grid keeps x >= 0, centred in y and z ("half" is the index of the origin there). Slice pixels are (kx, ky), cycles a box;
// a point is padding * A^T (kx, ky, 0), turned to x >= 0 by taking the mate.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

typedef float float2v __attribute__((vector_size(8)));
typedef float float4v __attribute__((vector_size(16)));

constexpr int BLOCK = 256;  // pixels whose points are found at once, by vector instructions

struct Grid {
    int64_t stride_y, stride_z;  // in grid points
    float half, padding;
};

struct Plane {  // pixels from `count` to `k` only fill rows up
    const float *kx, *ky;
    int64_t count, k;
};

struct Points {  // of a block of pixels: the lowest corner, distances from it, sign of the imaginary part
    alignas(64) int64_t z[BLOCK];
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
        points.z[j] = iz;
        points.corner[j] = iz * stride_z + iy * stride_y + ix;
    }
    return here;
}

// The slice (complex, k pixels) of a table [z, y, x] (complex, one more point at the end of each axis).
inline void sample(const float* table, const Grid& grid, const float* matrix, const Plane& plane, float* slice) {
    Points points;
    for (int64_t from = 0; from < plane.count; from += BLOCK) {
        const int here = locate(points, grid, matrix, plane, from);
        for (int j = 0; j < here; j++) {
            const float* corner = table + 2 * points.corner[j];
            const float4v a = load<float4v>(corner), b = load<float4v>(corner + 2 * grid.stride_y);
            const float4v c = load<float4v>(corner + 2 * grid.stride_z), d = load<float4v>(corner + 2 * (grid.stride_z + grid.stride_y));
            const float4v low = a + points.fy[j] * (b - a), high = c + points.fy[j] * (d - c);
            const float4v pair = low + points.fz[j] * (high - low);
            slice[2 * (from + j)] = pair[0] + points.fx[j] * (pair[2] - pair[0]);
            slice[2 * (from + j) + 1] = points.sign[j] * (pair[1] + points.fx[j] * (pair[3] - pair[1]));
        }
    }
    std::fill(slice + 2 * plane.count, slice + 2 * plane.k, 0.0f);
}
