// From scores to the few candidates that hold nearly all of the weight. The twin in torch is posterior.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr double STEPS = 281474976710656.0;  // 2^48, of an image's weight

// Keys rise where weights fall, and with the place among equal weights: positive floats are in the order of their bits.
inline uint64_t key_of(float weight, uint64_t place) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return (uint64_t)(INT32_MAX - bits) << 32 | place;
}

inline float weight_of(uint64_t key) {
    const uint32_t bits = INT32_MAX - (uint32_t)(key >> 32);
    float weight;
    std::memcpy(&weight, &bits, sizeof weight);
    return weight;
}

}  // namespace

extern "C" {

// Of each row of scores [n, m], −inf where there is no candidate: the fewest candidates that hold `fraction` of the weight, by falling
// weight, at most `at_most`: counts[n] of places and weights [n, at_most], 1 in sum. Those `negligible` below the row's largest have none.
// largest[n], log_sum[n]: the largest score, and log Σ exp(score − largest). Each thread takes every so-manyth row.
void weigh(const float* scores, int64_t n, int64_t m, double fraction, int64_t at_most, float negligible, int64_t* places, float* weights,
           int64_t* counts, float* largest, float* log_sum, int64_t thread, int64_t threads) {
    std::vector<int64_t> likely(m + 1);
    std::vector<float> share(m);
    std::vector<uint64_t> keys;
    for (int64_t i = thread; i < n; i += threads) {
        const float* row = scores + i * m;
        float best = row[0];
        for (int64_t j = 1; j < m; j++) best = std::max(best, row[j]);
        const float cut = best - negligible;
        int64_t found = 0;
        for (int64_t j = 0; j < m; j++) {
            likely[found] = j;
            found += row[j] > cut;
        }
        double total = 0;
        for (int64_t c = 0; c < found; c++) total += share[c] = std::exp(row[likely[c]] - best);
        // whatever is below an even share of the part that may be lost is lost in any case
        const float floor = total * (1 - fraction) / found;
        keys.clear();
        for (int64_t c = 0; c < found; c++)
            if (share[c] > floor) keys.push_back(key_of(share[c] / (float)total, likely[c]));
        if ((int64_t)keys.size() > at_most) {
            std::nth_element(keys.begin(), keys.begin() + at_most, keys.end());
            keys.resize(at_most);
        }
        std::sort(keys.begin(), keys.end());
        int64_t kept = 0, before = 0;
        double held = 0;
        for (; kept < (int64_t)keys.size() && before / STEPS < fraction; kept++) {
            const float weight = weight_of(keys[kept]);
            places[i * at_most + kept] = keys[kept] & UINT32_MAX;
            weights[i * at_most + kept] = weight;
            before += std::llrint(weight * STEPS);
            held += weight;
        }
        for (int64_t c = 0; c < kept; c++) weights[i * at_most + c] /= (float)held;
        counts[i] = kept;
        largest[i] = best;
        log_sum[i] = std::log(total);
    }
}
}
