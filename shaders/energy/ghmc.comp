// Many steps of GHMC on the sphere, one chain per workgroup, annealed through levels. A step is
// half of O, a trajectory of `leapfrogs` times the moves of integrator.glsl, and the other half of
// O. The trajectory is accepted with probability min(1, e^(-dH/T)); otherwise it is undone and the
// velocity reversed.
//
// As in langevin.comp, a step reads only x, v, its own number and its level, so cutting the steps
// elsewhere gives the same bits.
#version 450
#include "interface.glsl"
#include "bits.glsl"
#include "chain.glsl"
#include "integrator.glsl"

vec4 old_state[QUADS_PER];
vec4 old_velocity[QUADS_PER];
vec4 old_force[QUADS_PER];

bool accepted(uint step_number, uint chain, float change) {
    uvec4 counter = uvec4(step_number, params.first_chain + chain, 0u, STREAM_METROPOLIS);
    uint bits = philox(counter, uvec2(params.seed_low, params.seed_high)).x;
    if (is_nan(change)) return false;  // the trajectory blew up
    return change <= -params.temperature * log_accurate(open_uniform(bits));
}

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params.rows) return;
    load_candidates(chain);
    load_chain(chain);
    // energy, sums of |v|^2/(d-1) and of |change of H|, largest defect of x and v before projection
    vec4 record = diagnostics[2u * chain];
    float accepts = diagnostics[2u * chain + 1u].x;
    uint step = params.done;
    uint end = step + params.steps;
    uint level = 0u;
    uint leap = 0u;        // leapfrogs of the current trajectory
    uint stage = 0u;       // evaluations of the energy in this leapfrog
    bool entered = false;  // true if `force` and `mixture` belong to this state and level
    Mixture mixture = Mixture(0.0, 0.0, 0.0);
    float old_energy = 0.0;
    float before = 0.0;

    // As in langevin.comp, each pass evaluates the energy once: on entering a level, or in a stage
    // of a leapfrog.
    while (true) {
        bool first = leap == 0u && stage == 0u;
        if (first) {
            uint now = level_of(step, end, level);
            entered = entered && now == level;
            level = now;
            if (step == end && (entered || params.last == 0u)) break;
        }
        uint table = 2u * ((level_rows == 1u ? 0u : chain * levels) + level);
        vec4 law = level_table[table];  // kappa_scale, logw_shift, step size, decay of v in an O
        float h = law.z;
        Bath bath = Bath(params.first_step + step, chain, law.w, level_table[table + 1u].x);
        if (entered) {
            if (first) {
                ornstein_uhlenbeck(bath, STREAM_NOISE);
                FOR_OWN(i, q) {
                    old_state[i] = state[i];
                    old_velocity[i] = velocity[i];
                    old_force[i] = force[i];
                }
                measure_speed();
                record.y += squared_speed / float(d - 1u);
                old_energy = mixture.energy;
                before = old_energy + 0.5 * squared_speed;
            }
            move_before_landing(stage, h, bath);
            geodesic(landing_time(stage) * h, squared_speed);
            record.w = max(record.w, project_state());
        }
        mixture = energy_and_score(chain, law.x, law.y);
        if (entered) {
            kick(landing_kick(stage), h);
            record.w = max(record.w, project_velocity());
            ++stage;
            if (stage == STAGES) {
                stage = 0u;
                ++leap;
            }
        }
        if (leap == leapfrogs) {
            float change = mixture.energy + 0.5 * group_sum(own_dot(velocity, velocity)) - before;
            record.z += abs(change);
            if (accepted(params.first_step + step, chain, change)) {
                accepts += 1.0;
            } else {
                FOR_OWN(i, q) {
                    state[i] = old_state[i];
                    velocity[i] = -old_velocity[i];
                    force[i] = old_force[i];
                }
                mixture.energy = old_energy;
            }
            ornstein_uhlenbeck(bath, STREAM_NOISE_2);
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
