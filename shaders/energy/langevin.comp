// Many steps of g-BAOAB on the sphere, one chain per workgroup, annealed through levels. B is a
// kick, A a geodesic move of position and velocity, O exact friction and noise. At the end of a
// step x is normalised and v projected.
//
// A step reads only x, v, its own number and its level, so cutting the steps into other dispatches
// gives the same bits: the force kept from the previous step equals what a new dispatch computes
// from the same x.
#version 450
#include "interface.glsl"
#include "chain.glsl"

// A(h/2) O A(h/2). Returns |v|^2 right after O.
float drift(uint step, uint chain, float h, float squared_speed, float keep, float spread) {
    for (int half_step = 0; half_step < 2; ++half_step) {
        geodesic(0.5 * h, squared_speed);
        if (half_step != 0) break;
        ornstein_uhlenbeck(params[2] + step, chain, STREAM_NOISE, keep, spread);
        squared_speed = group_sum(own_dot(velocity, velocity));
    }
    return squared_speed;
}

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params[0]) return;
    load_candidates(chain);
    load_chain(chain);
    float squared_speed = group_sum(own_dot(velocity, velocity));
    // energy, sums of |v|^2/(d-1) and of |change of H|, largest defect of x and v before projection
    vec4 record = diagnostics[2u * chain];
    uint step = params[6];
    uint end = step + params[1];
    uint level = 0u;
    bool entered = false;  // true if `force` and `mixture` belong to this state and level
    Mixture mixture = Mixture(0.0, 0.0, 0.0);

    // Each pass evaluates the energy once: on entering a level, or in the middle of a step. (If it
    // were written twice, it would be compiled twice.) After the last step the energy is that of
    // the last level, even if that level has no steps.
    while (true) {
        uint now = level_of(step, end, level);
        entered = entered && now == level;
        level = now;
        if (step == end && (entered || params[7] == 0u)) break;

        uint table = 2u * ((level_rows == 1u ? 0u : chain * levels) + level);
        vec4 law = level_table[table];  // kappa_scale, logw_shift, step size, e^(-gamma h)
        float h = law.z;
        float before = mixture.energy + 0.5 * squared_speed;
        float kicked = 0.0;
        float thermal = 0.0;
        if (entered) {
            FOR_OWN(i, q) velocity[i] += (0.5 * h) * force[i];
            kicked = group_sum(own_dot(velocity, velocity));
            thermal = drift(step, chain, h, kicked, law.w, level_table[table + 1u].x);
            float squared_length = group_sum(own_dot(state, state));
            float shrink = inverse_sqrt(squared_length);
            FOR_OWN(i, q) state[i] *= shrink;
            record.w = max(record.w, abs(sqrt(squared_length) - 1.0));
        }
        mixture = energy_and_score(chain, law.x, law.y);
        if (entered) {
            FOR_OWN(i, q) velocity[i] += (0.5 * h) * force[i];
            vec2 defect = group_sum(vec2(own_dot(state, velocity), own_dot(velocity, velocity)));
            FOR_OWN(i, q) velocity[i] -= defect.x * state[i];
            squared_speed = group_sum(own_dot(velocity, velocity));
            record.y += thermal / float(d - 1u);
            record.z += abs(mixture.energy + 0.5 * squared_speed - before - 0.5 * (thermal - kicked));
            if (defect.y > 0.0) record.w = max(record.w, abs(defect.x) * inverse_sqrt(defect.y));
            ++step;
        }
        entered = true;
    }
    record.x = mixture.energy;

    store_chain(chain);
    if (gl_LocalInvocationIndex == 0u) diagnostics[2u * chain] = record;
}
