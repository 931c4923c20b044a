// Draws a token by inversion, one row per workgroup. A candidate has its responsibility as
// probability; the other tokens share `rest_share` in proportion to their probability. A token of
// weight 0 is never drawn. Writes 2^32 - 1 if the weights aren't finite.
#version 450
#include "interface.glsl"
#include "philox.glsl"
#include "candidate_set.glsl"

const float LOWEST = -1.0e30;  // stands for log 0
const uint NONE = 0xffffffffu;

shared uint drawn;
shared uint last_first;        // of the last block and part with weight
shared uint last_part;
shared float part_sum[GROUP];  // of 32 tokens each

float uniform_of(uint row, uint stream) {
    return open_uniform(philox(uvec4(0u, params.first_chain + row, 0u, stream), uvec2(params.seed_low, params.seed_high)).x);
}

// The number of the candidate; k for the others, NONE if there is no finite weight.
uint draw_candidate(uint row) {
    float total = rest_share[row];
    for (uint j = 0u; j < k; ++j) total += responsibilities[row * k + j];
    if ((floatBitsToUint(total) & 0x7f800000u) == 0x7f800000u || total <= 0.0) return NONE;
    float limit = uniform_of(row, params.choice_stream) * total;
    float sum = 0.0;
    uint last = NONE;  // the last with weight, if rounding leaves the sum below the limit
    for (uint j = 0u; j <= k; ++j) {
        float weight = j < k ? responsibilities[row * k + j] : rest_share[row];
        if (weight <= 0.0) continue;
        last = j;
        sum += weight;
        if (sum > limit) break;
    }
    return last;
}

// Sums the weights of the invocation's 32 tokens, in order.
float sum_part(uint row, uint first, float top) {
    float sum = 0.0;
    for (uint bit = 0u; bit < 32u; ++bit)
        if (outside(first, gl_LocalInvocationIndex, bit))
            sum += exp_accurate(max(log_probability(row, first + 32u * gl_LocalInvocationIndex + bit), LOWEST) - top);
    return sum;
}

// The token of a part of the marked block where the sum of weights passes `limit`, or else the last
// one with weight.
uint search_part(uint row, uint first, uint part, float top, float limit) {
    uint last = NONE;
    float sum = 0.0;
    for (uint bit = 0u; bit < 32u; ++bit) {
        if (!outside(first, part, bit)) continue;
        float weight = exp_accurate(max(log_probability(row, first + 32u * part + bit), LOWEST) - top);
        if (weight <= 0.0) continue;
        last = first + 32u * part + bit;
        sum += weight;
        if (sum > limit) break;
    }
    return last;
}

// Searches the whole block in the same way. If its sum doesn't pass `limit`, returns NONE and
// subtracts the sum from `limit`.
uint search_block(uint row, uint first, float top, inout float limit) {
    for (uint part = 0u; part < GROUP; ++part) {
        if (part_sum[part] > limit) return search_part(row, first, part, top, limit);
        limit -= part_sum[part];
        if (part_sum[part] > 0.0) {
            last_first = first;
            last_part = part;
        }
    }
    return NONE;
}

// Draws one of the tokens outside the candidates.
uint draw_other(uint row) {
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
        sum += sum_part(row, first, top);
    }
    sum = group_sum(sum);
    float limit = uniform_of(row, params.rest_stream) * sum;
    for (uint first = 0u; first < width; first += BLOCK) {
        mark_candidates(row, first);
        part_sum[gl_LocalInvocationIndex] = sum_part(row, first, top);
        barrier();
        if (gl_LocalInvocationIndex == 0u) drawn = search_block(row, first, top, limit);
        barrier();
        if (drawn != NONE) return drawn;
    }
    mark_candidates(row, last_first);  // rounding left the sum below the limit
    return search_part(row, last_first, last_part, top, INFINITE);
}

void main() {
    uint row = gl_WorkGroupID.x;
    if (row >= params.rows) return;
    if (gl_LocalInvocationIndex == 0u) {
        drawn = draw_candidate(row);
        last_first = 0u;
        last_part = 0u;
    }
    barrier();
    uint choice = drawn;
    barrier();
    uint token = NONE;
    if (choice < k)
        token = ids[row * k + choice];
    else if (choice == k)
        token = draw_other(row);
    if (gl_LocalInvocationIndex == 0u) tokens[row] = token;
}
