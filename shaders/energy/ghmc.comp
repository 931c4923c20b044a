// Many steps of GHMC on the sphere, one chain per workgroup, annealed through levels. A step is
// half of O, a trajectory of `leapfrogs` times B A(h) B, and the other half of O. The trajectory is
// accepted with probability min(1, e^(-dH/T)); otherwise it is undone and the velocity reversed.
//
// As in langevin.comp, a step reads only x, v, its own number and its level, so cutting the steps
// elsewhere gives the same bits.
#version 450
#include "interface.glsl"
#include "bits.glsl"
#include "chain.glsl"

vec4 old_state[QUADS_PER];
vec4 old_velocity[QUADS_PER];
vec4 old_force[QUADS_PER];

bool accepted(uint step_number, uint chain, float change) {
    uint bits = philox(uvec4(step_number, params[3] + chain, 0u, STREAM_METROPOLIS), uvec2(params[4], params[5])).x;
    if (is_nan(change)) return false;  // the trajectory blew up
    return change <= -uintBitsToFloat(params[8]) * log_accurate(open_uniform(bits));
}

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params[0]) return;
    load_candidates(chain);
    load_chain(chain);
    // energy, sums of |v|^2/(d-1) and of |change of H|, largest defect of x and v before projection
    vec4 record = diagnostics[2u * chain];
    float accepts = diagnostics[2u * chain + 1u].x;
    uint step = params[6];
    uint end = step + params[1];
    uint level = 0u;
    uint leap = 0u;        // leapfrogs of the current trajectory
    bool entered = false;  // true if `force` and `mixture` belong to this state and level
    Mixture mixture = Mixture(0.0, 0.0, 0.0);
    float old_energy = 0.0;
    float before = 0.0;

    // As in langevin.comp, each pass evaluates the energy once: on entering a level, or at the end
    // of a leapfrog.
    while (true) {
        if (leap == 0u) {
            uint now = level_of(step, end, level);
            entered = entered && now == level;
            level = now;
            if (step == end && (entered || params[7] == 0u)) break;
        }
        uint table = 2u * ((level_rows == 1u ? 0u : chain * levels) + level);
        vec4 law = level_table[table];  // kappa_scale, logw_shift, step size, e^(-gamma leapfrogs h/2)
        float spread = level_table[table + 1u].x;
        float h = law.z;
        if (entered) {
            if (leap == 0u) {
                ornstein_uhlenbeck(params[2] + step, chain, STREAM_NOISE, law.w, spread);
                FOR_OWN(i, q) {
                    old_state[i] = state[i];
                    old_velocity[i] = velocity[i];
                    old_force[i] = force[i];
                }
                float thermal = group_sum(own_dot(velocity, velocity));
                record.y += thermal / float(d - 1u);
                old_energy = mixture.energy;
                before = old_energy + 0.5 * thermal;
            }
            FOR_OWN(i, q) velocity[i] += (0.5 * h) * force[i];
            geodesic(h, group_sum(own_dot(velocity, velocity)));
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
            if (defect.y > 0.0) record.w = max(record.w, abs(defect.x) * inverse_sqrt(defect.y));
            ++leap;
        }
        if (leap == leapfrogs) {
            float change = mixture.energy + 0.5 * group_sum(own_dot(velocity, velocity)) - before;
            record.z += abs(change);
            if (accepted(params[2] + step, chain, change)) {
                accepts += 1.0;
            } else {
                FOR_OWN(i, q) {
                    state[i] = old_state[i];
                    velocity[i] = -old_velocity[i];
                    force[i] = old_force[i];
                }
                mixture.energy = old_energy;
            }
            ornstein_uhlenbeck(params[2] + step, chain, STREAM_NOISE_2, law.w, spread);
            leap = 0u;
            ++step;
        }
        entered = true;
    }
    record.x = mixture.energy;

    store_chain(chain);
    if (gl_LocalInvocationIndex == 0u) {
        diagnostics[2u * chain] = record;
        diagnostics[2u * chain + 1u] = vec4(accepts, 0.0, 0.0, 0.0);
    }
}
