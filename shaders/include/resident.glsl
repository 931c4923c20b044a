// Keeps a chain's candidates in the registers of its workgroup for all steps of a dispatch. They
// are read once, coalesced; streaming would read them in each step.
//
// Subgroup s holds the candidates s, s + SUBGROUPS, ... (HELD of them), and each of its lanes the
// quads lane, lane + (size of a subgroup), ... (LANE_QUADS of them). 64 candidates of 640 floats
// take 80 registers in each of 512 invocations; in halves, 80 in each of 256. The arrays stay in
// registers only if every index is a constant, so all loops over them are unrolled. Shared memory is
// accessed in consecutive quads, without bank conflicts.
//
// State, velocity and force are in shared memory. Subgroup 0 owns them: it alone moves the chain, so
// no sum over coordinates needs a barrier. A workgroup has at least as many invocations as a row has
// quads.
#ifndef EBMVK_RESIDENT_GLSL
#define EBMVK_RESIDENT_GLSL
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_control_flow_attributes : require

const uint LANES = GROUP / SUBGROUPS;
const uint ROW = LANES * LANE_QUADS;                   // quads of a row, filled up with zeros
const uint TERMS = HELD * SUBGROUPS;
const uint LANE_TERMS = (TERMS + LANES - 1u) / LANES;
const uint PARTS = SUBGROUPS < 8u ? SUBGROUPS : 8u;  // subgroups that add at once; others take turns

QUAD held[HELD * LANE_QUADS];
vec2 own_law;    // logw, kappa of this lane's candidate, gl_SubgroupID + lane SUBGROUPS
float log_rest;  // of the background

shared vec4 whole_state[ROW];
shared vec4 whole_velocity[ROW];
// Parts of the weighted sum, a row for each subgroup; the first row then becomes the force. These are
// floats, because a lane would have to copy the four of a vec4 to neighbouring registers first.
shared float parts[4u * PARTS * ROW];
shared vec2 terms[TERMS];  // a_j, kappa_j mu_j.x of every candidate

// What only the subgroup that owns the state does. A loop instead of a condition, because bench.isa
// can tell how often a loop runs, and counts both sides of a condition.
#define OWNERS for (uint turn = gl_SubgroupID; turn == 0u; turn += SUBGROUPS)
#define FOR_OWN(i, q) \
    [[dont_unroll]] for (uint i = 0u, q = gl_SubgroupInvocationID; i < LANE_QUADS; ++i, q += LANES)
#define FOR_TERMS(j) \
    [[unroll]] for (uint n = 0u, j = gl_SubgroupInvocationID; n < LANE_TERMS; ++n, j += LANES) \
        if (TERMS % LANES == 0u || j < TERMS)
#define STATE(i, q) whole_state[q]
#define VELOCITY(i, q) whole_velocity[q]
#define FORCE(i, q) part_of(q)
#define SET_FORCE(i, q, value) set_part(q, value)

// The place in `parts` of a row's first coordinate of quad q.
uint part_at(uint row, uint q) { return 4u * row * ROW + q; }

vec4 part_of(uint at) { return vec4(parts[at], parts[at + ROW], parts[at + 2u * ROW], parts[at + 3u * ROW]); }

void set_part(uint at, vec4 part) {
    [[unroll]] for (uint c = 0u; c < 4u; ++c) parts[at + c * ROW] = part[c];
}

void load_candidates(uint chain) {
    log_rest = max(background[chain], LOG_ZERO);
    own_law = vec2(LOG_ZERO, 0.0);
    uint mine = gl_SubgroupID + gl_SubgroupInvocationID * SUBGROUPS;
    if (gl_SubgroupInvocationID < HELD && mine < k)
        own_law = vec2(max(logw[chain * k + mine], LOG_ZERO), kappa[chain * k + mine]);
    [[unroll]] for (uint n = 0u; n < HELD; ++n) {
        uint j = gl_SubgroupID + n * SUBGROUPS;
        uint row = j < k ? ids[chain * k + j] * quads : 0u;
        [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) {
            uint q = gl_SubgroupInvocationID + i * LANES;
            held[n * LANE_QUADS + i] = j < k && q < quads ? points[row + q] : QUAD(0);
        }
    }
}

// mu_j.x of this lane's candidate.
float dot_held() {
    float sums[HELD];
    [[unroll]] for (uint n = 0u; n < HELD; ++n) sums[n] = 0.0;
    [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) {
        vec4 mine = whole_state[gl_SubgroupInvocationID + i * LANES];
        [[unroll]] for (uint n = 0u; n < HELD; ++n) sums[n] = add_dot(sums[n], decode(held[n * LANE_QUADS + i]), mine);
    }
    float along = 0.0;
    [[unroll]] for (uint n = 0u; n < HELD; ++n) {
        float sum = subgroupAdd(sums[n]);
        if (gl_SubgroupInvocationID == n) along = sum;
    }
    return along;
}

// Each subgroup's part of sum_j weight_j mu_j, where every lane has the weight of its candidate.
// Parts are always added in the same order.
void add_held(float weight) {
    vec4 part[LANE_QUADS];
    [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) part[i] = vec4(0.0);
    [[unroll]] for (uint n = 0u; n < HELD; ++n) {
        float share = subgroupBroadcast(weight, n);
        [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) part[i] += share * decode(held[n * LANE_QUADS + i]);
    }
    for (uint first = 0u; first < SUBGROUPS; first += PARTS) {
        uint row = gl_SubgroupID - first;
        if (row < PARTS) {  // also false if the subtraction wraps, because this subgroup had its turn
            uint at = part_at(row, gl_SubgroupInvocationID);
            // The next quad is requested before this one is written.
            vec4 next = first == 0u ? vec4(0.0) : part_of(at);
            [[unroll]] for (uint i = 0u; i < LANE_QUADS; ++i) {
                vec4 sum = next + part[i];
                if (first != 0u && i + 1u < LANE_QUADS) next = part_of(at + (i + 1u) * LANES);
                set_part(at + i * LANES, sum);
            }
        }
        barrier();
    }
}

// Sets `mixture`, and the force in subgroup 0, which owns it. whole_state must be visible to all.
void energy_and_score(uint chain, float kappa_scale, float logw_shift) {
    float concentration = kappa_scale * own_law.y;
    float pull = concentration * dot_held();
    float a = own_law.x + logw_shift + pull;
    if (gl_SubgroupInvocationID < HELD) terms[gl_SubgroupID + gl_SubgroupInvocationID * SUBGROUPS] = vec2(a, pull);
    barrier();

    // Every subgroup finds the largest term by itself, so that weights need no second exchange.
    float top = log_rest;
    FOR_TERMS(j) top = max(top, terms[j].x);
    top = subgroupMax(top);
    add_held(exp_accurate(a - top) * concentration);

    OWNERS {
        vec2 sums = vec2(gl_SubgroupInvocationID == 0u ? exp_accurate(log_rest - top) : 0.0, 0.0);
        FOR_TERMS(j) {
            vec2 term = terms[j];
            float weight = exp_accurate(term.x - top);
            sums += vec2(weight, weight * term.y);
        }
        mixture = mixture_of(top, subgroupAdd(sums));
        FOR_OWN(i, q) {
            vec4 sum = vec4(0.0);
            [[unroll]] for (uint row = 0u; row < PARTS; ++row) sum += part_of(part_at(row, q));
            set_part(q, mixture.scale * sum - mixture.along * whole_state[q]);
        }
    }
}

#endif
