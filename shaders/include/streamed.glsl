// The energy of a chain whose candidates are read from memory at each evaluation.
//
// Each invocation owns QUADS_PER quads of the state, q = me, me + GROUP, …, in registers.
#ifndef EBMVK_STREAMED_GLSL
#define EBMVK_STREAMED_GLSL

#define OWNERS  // all invocations own a part of the state
#define FOR_OWN(i, q) \
    for (uint i = 0u, q = gl_LocalInvocationIndex; i < QUADS_PER; ++i, q += GROUP) if (q < quads)
#define STATE(i, q) state[i]
#define VELOCITY(i, q) velocity[i]
#define FORCE(i, q) force[i]
#define SET_FORCE(i, q, value) force[i] = value

vec4 state[QUADS_PER];
vec4 force[QUADS_PER];

shared vec4 whole_state[GROUP * QUADS_PER];
shared uint candidate_row[CANDIDATES];
shared vec2 candidate_law[CANDIDATES];  // logw, kappa
shared float candidate_dot[CANDIDATES];
shared float candidate_weight[CANDIDATES];  // kappa_j e^(a_j - top)

float own_dot(const vec4 a[QUADS_PER], const vec4 b[QUADS_PER]) {
    float sum = 0.0;
    FOR_OWN(i, q) sum += dot(a[i], b[i]);
    return sum;
}

void load_candidates(uint chain) {
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        candidate_row[j] = ids[chain * k + j] * quads;
        candidate_law[j] = vec2(max(logw[chain * k + j], LOG_ZERO), kappa[chain * k + j]);
    }
    barrier();
}

// mu_j.x for every candidate.
void dot_candidates() {
#ifdef USE_SUBGROUP  // one candidate per subgroup: rows are read in one piece
    for (uint j = gl_SubgroupID; j < k; j += gl_NumSubgroups) {
        float sum = 0.0;
        for (uint q = gl_SubgroupInvocationID; q < quads; q += gl_SubgroupSize)
            sum += dot(decode(points[candidate_row[j] + q]), whole_state[q]);
        sum = subgroupAdd(sum);
        if (subgroupElect()) candidate_dot[j] = sum;
    }
#else  // one candidate per invocation: no reduction
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        float sum = 0.0;
        for (uint q = 0u; q < quads; ++q) sum += dot(decode(points[candidate_row[j] + q]), whole_state[q]);
        candidate_dot[j] = sum;
    }
#endif
}

// Quad q of sum_j candidate_weight_j mu_j.
vec4 weighted_points(uint q) {
    vec4 sum = vec4(0.0);
    for (uint j = 0u; j < k; ++j) sum += candidate_weight[j] * decode(points[candidate_row[j] + q]);
    return sum;
}

// Sets `mixture` and the force at the state with kappa_scale kappa_j and logw_j + logw_shift.
void energy_and_score(uint chain, float kappa_scale, float logw_shift) {
    FOR_OWN(i, q) whole_state[q] = state[i];
    barrier();
    dot_candidates();
    barrier();

    float log_rest = max(background[chain], LOG_ZERO);
    float top = log_rest;
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        vec2 law = candidate_law[j];
        top = max(top, law.x + logw_shift + kappa_scale * law.y * candidate_dot[j]);
    }
    top = group_max(top);

    vec2 sums = vec2(gl_LocalInvocationIndex == 0u ? exp_accurate(log_rest - top) : 0.0, 0.0);
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        vec2 law = candidate_law[j];
        float concentration = kappa_scale * law.y;
        float weight = exp_accurate(law.x + logw_shift + concentration * candidate_dot[j] - top);
        candidate_weight[j] = weight * concentration;
        sums += vec2(weight, weight * concentration * candidate_dot[j]);
    }
    sums = group_sum(sums);
    barrier();

    mixture = mixture_of(top, sums);
    FOR_OWN(i, q) force[i] = mixture.scale * weighted_points(q) - mixture.along * state[i];
}

#endif
