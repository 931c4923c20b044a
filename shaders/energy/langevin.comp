// Many steps of an unadjusted integrator on the sphere, one chain per workgroup, annealed through
// levels. integrator.glsl has the moves of a step.
//
// A step reads only x, v, its own number and its level, so cutting the steps into other dispatches
// gives the same bits: the force kept from the previous step equals what a new dispatch computes
// from the same x.
#version 450
#include "interface.glsl"
#include "chain.glsl"
#include "integrator.glsl"

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params.rows) return;
    load_candidates(chain);
    load_chain(chain);
    measure_speed();
    // energy, sums of |v|^2/(d-1) and of |change of H|, largest defect of x and v before projection
    vec4 record = diagnostics[2u * chain];
    uint step = params.done;
    uint end = step + params.steps;
    uint level = 0u;
    uint stage = 0u;       // evaluations of the energy in this step
    bool entered = false;  // true if `force` and `mixture` belong to this state and level
    Mixture mixture = Mixture(0.0, 0.0, 0.0);
    float before = 0.0;

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
        if (entered) {
            if (stage == 0u) before = mixture.energy + 0.5 * squared_speed;
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
                measure_speed();
                move_after_landing(h, bath);
                record.y += thermal / float(d - 1u);
                record.z += abs(mixture.energy + 0.5 * squared_speed - before - 0.5 * heat);
                ++step;
            }
        }
        entered = true;
    }
    record.x = mixture.energy;

    store_chain(chain);
    if (gl_LocalInvocationIndex == 0u) diagnostics[2u * chain] = record;
}
