// Many steps of GHMC on the sphere, one chain per workgroup, annealed through levels. A step is
// half of O, a trajectory of `leapfrogs` times the moves of integrator.glsl, and the other half of
// O. The trajectory is accepted with probability min(1, e^(-dH/T)); otherwise it is undone and the
// velocity reversed.
//
// As in langevin.comp, a step reads only x, v, its own number and its level, so cutting the steps
// into other dispatches gives the same bits.
#version 450
#include "interface.glsl"
#include "bits.glsl"
#include "integrator.glsl"

// The chain where its trajectory began, after the first O.
#ifdef RESIDENT  // x and v stay those of the last step until the next step is stored
shared vec4 old_force[ROW];
#define OLD_STATE(i, q) x[chain * quads + q]
#define OLD_VELOCITY(i, q) v[chain * quads + q]
#define OLD_FORCE(i, q) old_force[q]
#else
vec4 old_state[QUADS_PER];
vec4 old_velocity[QUADS_PER];
vec4 old_force[QUADS_PER];
#define OLD_STATE(i, q) old_state[i]
#define OLD_VELOCITY(i, q) old_velocity[i]
#define OLD_FORCE(i, q) old_force[i]
#endif

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
    OWNERS {
        KEPT.record = diagnostics[2u * chain];
        KEPT.accepts = diagnostics[2u * chain + 1u].x;
    }
    uint step = params.done;
    uint end = step + params.steps;
    uint level = 0u;
    uint leap = 0u;        // leapfrogs of the current trajectory
    uint stage = 0u;       // evaluations of the energy in this leapfrog
    bool entered = false;  // true if the force and `mixture` belong to this state and level

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
        if (entered) OWNERS {
            if (first) {
                measure(bath, 0u);
                ornstein_uhlenbeck(bath);
                measure_speed();
                FOR_OWN(i, q) if (q < quads) {
                    OLD_STATE(i, q) = STATE(i, q);
                    OLD_VELOCITY(i, q) = moved_velocity(i, q);
                    OLD_FORCE(i, q) = FORCE(i, q);
                }
                KEPT.record.y += squared_speed / float(d - 1u);
                KEPT.old_energy = mixture.energy;
                KEPT.before = mixture.energy + 0.5 * squared_speed;
            } else {
                measure(bath, NO_NOISE);
            }
            move_before_landing(stage, h, bath);
            geodesic(landing_time(stage) * h, squared_speed);
            KEPT.record.w = max(KEPT.record.w, project_state());
            settle();
        }
        if (first) draw_ahead(bath.step_number + uint(entered), bath.step_number, chain);
        share_state(first);
        energy_and_score(chain, law.x, law.y);
        if (entered) {
            OWNERS {
                measure(bath, NO_NOISE);
                kick(landing_kick(stage), h);
                KEPT.record.w = max(KEPT.record.w, project_velocity());
                settle_velocity();
            }
            ++stage;
            if (stage == STAGES) {
                stage = 0u;
                ++leap;
            }
        }
        if (leap == leapfrogs) {
            OWNERS {
                float change = mixture.energy + 0.5 * squared_speed - KEPT.before;
                KEPT.record.z += abs(change);
                if (accepted(params.first_step + step, chain, change)) {
                    KEPT.accepts += 1.0;
                } else {
                    FOR_OWN(i, q) if (q < quads) {
                        STATE(i, q) = OLD_STATE(i, q);
                        VELOCITY(i, q) = -OLD_VELOCITY(i, q);
                        SET_FORCE(i, q, OLD_FORCE(i, q));
                    }
                    mixture.energy = KEPT.old_energy;
                }
                measure(bath, 1u);
                ornstein_uhlenbeck(bath);
                settle_velocity();
            }
            leap = 0u;
            ++step;
        }
        entered = true;
    }

    store_chain(chain);
    if (gl_LocalInvocationIndex == 0u) {
        diagnostics[2u * chain] = vec4(mixture.energy, KEPT.record.yzw);
        diagnostics[2u * chain + 1u] = vec4(KEPT.accepts, 0.0, 0.0, 0.0);
    }
}
