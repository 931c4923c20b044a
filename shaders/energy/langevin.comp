// Many steps of an unadjusted integrator on the sphere, one chain per workgroup, annealed through
// levels. integrator.glsl has the moves of a step.
//
// A step reads only x, v, its own number and its level, so cutting the steps into other dispatches
// gives the same bits: the force kept from the previous step equals what a new dispatch computes
// from the same x, and x and v are stored after each step.
#version 450
#include "interface.glsl"
#include "integrator.glsl"

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params.rows) return;
    load_candidates(chain);
    load_chain(chain);
    OWNERS { KEPT.record = diagnostics[2u * chain]; }
    uint step = params.done;
    uint end = step + params.steps;
    uint level = 0u;
    uint stage = 0u;       // evaluations of the energy in this step
    bool entered = false;  // true if the force and `mixture` belong to this state and level

    // Each pass evaluates the energy once: on entering a level, or in a stage of a step. (If it
    // were written twice, it would be compiled twice.) After the last step the energy is that of
    // the last level, even if that level has no steps.
    while (true) {
        if (stage == 0u) {
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
            measure_before(stage, bath);
            if (stage == 0u) KEPT.before = mixture.energy + 0.5 * squared_speed;
            move_before_landing(stage, h, bath);
            geodesic(landing_time(stage) * h, squared_speed);
            KEPT.record.w = max(KEPT.record.w, project_state());
            settle();
        }
        if (stage == 0u) draw_ahead(bath.step_number + uint(entered), bath.step_number, chain);
        share_state(stage == 0u);
        energy_and_score(chain, law.x, law.y);
        if (entered) {
            OWNERS {
                measure_after(stage, bath);
                kick(landing_kick(stage), h);
                KEPT.record.w = max(KEPT.record.w, project_velocity());
                if (stage + 1u == STAGES) {
                    move_after_landing(h, bath);
                    KEPT.record.y += KEPT.thermal / float(d - 1u);
                    KEPT.record.z += abs(mixture.energy + 0.5 * squared_speed - KEPT.before - 0.5 * KEPT.heat);
                }
                settle_velocity();
            }
            ++stage;
            if (stage == STAGES) {
                stage = 0u;
                ++step;
            }
        }
        entered = true;
    }

    store_chain(chain);
    if (gl_LocalInvocationIndex == 0u) diagnostics[2u * chain] = vec4(mixture.energy, KEPT.record.yzw);
}
