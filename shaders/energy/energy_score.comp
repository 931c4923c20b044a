// Energy, tangent score and responsibilities, one state per workgroup.
#version 450
#include "interface.glsl"
#include "energy.glsl"

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params.rows) return;
    load_candidates(chain);
    FOR_OWN(i, q) state[i] = x[chain * quads + q];

    energy_and_score(chain, 1.0, 0.0);
    FOR_OWN(i, q) score[chain * quads + q] = force[i];
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        vec2 law = candidate_law[j];
        responsibilities[chain * k + j] = exp_accurate(law.x + law.y * candidate_dot[j] - mixture.top) * mixture.scale;
    }
    if (gl_LocalInvocationIndex == 0u) {
        energy[chain] = mixture.energy;
        rest_share[chain] = exp_accurate(max(background[chain], LOG_ZERO) - mixture.top) * mixture.scale;
    }
}
