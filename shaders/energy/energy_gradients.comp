// Gradients of grad_energy E + grad_score.score, one state per workgroup. For the points it writes
// weights only. With w = P_x grad_score, a_j = kappa_j mu_j.w, level = sum_j rho_j a_j + grad_energy,
// c_j = rho_j (a_j - level):
//   dlogw_j = c_j, dkappa_j = c_j mu_j.x + rho_j mu_j.w, dbackground = -rho_rest level,
//   dmu_j = c_j kappa_j x + rho_j kappa_j w, dx = sum_j c_j kappa_j mu_j - (x.grad_score) g - (x.g) grad_score,
// where g = score + (x.g) x.
#version 450
#include "interface.glsl"
#include "energy.glsl"

vec4 pull[QUADS_PER];  // grad_score, then w

shared float along_state[CANDIDATES];  // mu_j.x
shared float share[CANDIDATES];        // rho_j

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    uint chain = params.first_row + gl_WorkGroupID.x;
    load_candidates(chain);
    FOR_OWN(i, q) state[i] = x[chain * quads + q];
    energy_and_score(chain, 1.0, 0.0);

    vec2 sums = vec2(0.0);  // x.g, sum_j rho_j a_j
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        vec2 law = candidate_law[j];
        along_state[j] = candidate_dot[j];
        share[j] = exp_accurate(law.x + law.y * candidate_dot[j] - mixture.top) * mixture.scale;
        sums.x += share[j] * law.y * along_state[j];
    }
    FOR_OWN(i, q) pull[i] = grad_score[chain * quads + q];
    float outward = group_sum(own_dot(state, pull));
    barrier();
    FOR_OWN(i, q) {
        pull[i] -= outward * state[i];
        whole_state[q] = pull[i];
        tangent[chain * quads + q] = pull[i];
    }
    barrier();
    dot_candidates();
    barrier();

    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) sums.y += share[j] * candidate_law[j].y * candidate_dot[j];
    sums = group_sum(sums);
    float level = sums.y + grad_energy[chain];
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        float concentration = candidate_law[j].y;
        // Subtract the mean of a_j first: if one candidate has all the weight, both terms are large
        // and equal.
        precise float above = concentration * candidate_dot[j] - sums.y;
        float c = share[j] * (above - grad_energy[chain]);
        candidate_weight[j] = c * concentration;
        weights[chain * k + j] = vec2(c, share[j]) * concentration;
        grad_logw[chain * k + j] = c;
        grad_kappa[chain * k + j] = c * along_state[j] + share[j] * candidate_dot[j];
    }
    barrier();
    FOR_OWN(i, q) {
        vec4 g = force[i] + sums.x * state[i];
        grad_x[chain * quads + q] = weighted_points(q) - outward * g - sums.x * (pull[i] + outward * state[i]);
    }
    if (gl_LocalInvocationIndex == 0u) {
        float rest = exp_accurate(max(background[chain], LOG_ZERO) - mixture.top) * mixture.scale;
        grad_background[chain] = -rest * level;
    }
}
