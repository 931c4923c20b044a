// Keeps a chain's candidates in the registers of its workgroup for all steps of a dispatch. They
// are read once, coalesced; streaming would read them twice in each step.
//
// Subgroup s holds the candidates s, s + SUBGROUPS, ... (HELD of them), and each of its lanes the
// quads lane, lane + (size of a subgroup), ... (LANE_QUADS of them). 64 candidates of 640 halves
// are 80 registers in each of 256 invocations, or about 140 with the state and temporaries. So an
// NVIDIA multiprocessor runs one or two such workgroups, an RDNA2 one three or four. The arrays
// stay in registers only if every index is a constant, so all loops over them are unrolled. Shared
// memory is accessed in consecutive quads, without bank conflicts.
#ifndef EBMVK_RESIDENT_GLSL
#define EBMVK_RESIDENT_GLSL
#extension GL_EXT_control_flow_attributes : require

const uint LANES = GROUP / SUBGROUPS;

QUAD held[HELD * LANE_QUADS];
const uint PARTS = SUBGROUPS < 8u ? SUBGROUPS : 8u;  // one for each subgroup of 32; smaller subgroups take turns
shared vec4 parts[PARTS * LANE_QUADS * LANES];

void hold_candidates() {
    [[unroll]] for (uint n = 0u; n < HELD; ++n) {
        uint j = gl_SubgroupID + n * SUBGROUPS;
        [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) {
            uint q = gl_SubgroupInvocationID + i * LANES;
            held[n * LANE_QUADS + i] = j < k && q < quads ? points[candidate_row[j] + q] : QUAD(0);
        }
    }
}

// mu_j.x for every candidate.
void dot_candidates() {
    vec4 mine[LANE_QUADS];
    [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) {
        uint q = gl_SubgroupInvocationID + i * LANES;
        mine[i] = q < quads ? whole_state[q] : vec4(0.0);
    }
    [[unroll]] for (uint n = 0u; n < HELD; ++n) {
        uint j = gl_SubgroupID + n * SUBGROUPS;
        float sum = 0.0;
        [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) sum += dot(decode(held[n * LANE_QUADS + i]), mine[i]);
        sum = subgroupAdd(sum);
        if (j < k && subgroupElect()) candidate_dot[j] = sum;
    }
}

// Each subgroup's part of sum_j candidate_weight_j mu_j, always added in the same order.
void add_held() {
    float weight[HELD];
    [[unroll]] for (uint n = 0u; n < HELD; ++n) {
        uint j = gl_SubgroupID + n * SUBGROUPS;
        weight[n] = j < k ? candidate_weight[j] : 0.0;
    }
    for (uint first = 0u; first < SUBGROUPS; first += PARTS) {
        uint row = gl_SubgroupID - first;
        if (row < PARTS)  // also false if the subtraction wraps, because this subgroup had its turn
            [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) {
                uint at = (row * LANE_QUADS + i) * LANES + gl_SubgroupInvocationID;
                vec4 part = first == 0u ? vec4(0.0) : parts[at];
                [[unroll]] for (uint n = 0u; n < HELD; ++n) part += weight[n] * decode(held[n * LANE_QUADS + i]);
                parts[at] = part;
            }
        barrier();
    }
}

vec4 weighted_points(uint q) {
    vec4 sum = vec4(0.0);
    for (uint row = 0u; row < PARTS; ++row) sum += parts[row * (LANE_QUADS * LANES) + q];
    return sum;
}

#endif
