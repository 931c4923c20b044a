// The masses of the candidates, the log of the mass outside them, and the entropy of this mixture,
// one row per workgroup. The mass outside is summed, because 1 minus the mass inside would lose the
// digits of a small one.
#version 450
#include "interface.glsl"
#include "candidate_set.glsl"

const float LOWEST = -1.0e30;  // stands for log 0

float entropy_of(float log_weight) {
    return log_weight > 0.5 * LOWEST ? -exp_accurate(log_weight) * log_weight : 0.0;
}

void main() {
    uint row = gl_WorkGroupID.x;
    if (row >= params.rows) return;
    float mean = 0.0;
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        float value = log_probability(row, ids[row * k + j]);
        logp[row * k + j] = value;
        mean += entropy_of(max(value, LOWEST));
    }
    float top = LOWEST;
    for (uint first = 0u; first < width; first += BLOCK) {
        mark_candidates(row, first);
        for (uint bit = 0u; bit < 32u; ++bit)
            if (outside(first, gl_LocalInvocationIndex, bit))
                top = max(top, log_probability(row, first + 32u * gl_LocalInvocationIndex + bit));
    }
    top = group_max(top);
    float sum = 0.0;
    for (uint first = 0u; first < width; first += BLOCK) {
        mark_candidates(row, first);
        for (uint bit = 0u; bit < 32u; ++bit)
            if (outside(first, gl_LocalInvocationIndex, bit))
                sum += exp_accurate(
                    max(log_probability(row, first + 32u * gl_LocalInvocationIndex + bit), LOWEST) - top);
    }
    vec2 sums = group_sum(vec2(sum, mean));
    if (gl_LocalInvocationIndex == 0u) {
        bool empty = top < 0.5 * LOWEST;
        float rest = top + log_accurate(sums.x);
        log_rest[row] = empty ? -INFINITE : rest;
        entropy[row] = sums.y + (empty ? 0.0 : entropy_of(rest));
    }
}
