// Many steps of g-BAOAB on the sphere (B: kick, A: geodesic move of position and velocity, O: exact friction and noise;
// x renormalised and v projected at the end of a step), one chain per workgroup, annealed through levels.
//
// A step reads nothing but x, v, its own number and its level, so any cut of the steps into dispatches gives the same
// bits: the force kept from the step before equals what a new dispatch computes from the same x.
#version 450
#include "interface.glsl"
#include "energy.glsl"
#include "philox.glsl"

vec4 velocity[QUADS_PER];

// Position and velocity together along the geodesic, for a time t at speed w = |v|.
void geodesic(float t, float squared_speed) {
    float w = sqrt(squared_speed);
    float angle = w * t;
    vec2 cs = cos_sin(angle);
    float lever = t * sinc(angle);  // sin(wt)/w
    FOR_OWN(i, q) {
        vec4 position = state[i];
        state[i] = cs.x * position + lever * velocity[i];
        velocity[i] = cs.x * velocity[i] - (w * cs.y) * position;
    }
}

// Standard normals of one step, zero beyond coordinate d.
vec4 noise(uint step_number, uint chain, uint q) {
    vec4 xi = normals(uvec4(step_number, params[3] + chain, q, 0u), uvec2(params[4], params[5]));
    uvec4 coordinate = 4u * q + uvec4(0u, 1u, 2u, 3u);
    return mix(vec4(0.0), xi, lessThan(coordinate, uvec4(d)));
}

void ornstein_uhlenbeck(uint step_number, uint chain, float keep, float spread) {
    vec4 xi[QUADS_PER];
    FOR_OWN(i, q) xi[i] = noise(step_number, chain, q);
    float along = group_sum(own_dot(state, xi));
    FOR_OWN(i, q) velocity[i] = keep * velocity[i] + spread * (xi[i] - along * state[i]);
}

// Where a level's two entries begin; the table has one row for all chains or one each.
uint level_at(uint chain, uint level) { return 2u * ((level_rows == 1u ? 0u : chain * levels) + level); }

void main() {
    uint chain = gl_WorkGroupID.x;
    if (chain >= params[0]) return;
    load_candidates(chain);
    FOR_OWN(i, q) {
        state[i] = x[chain * quads + q];
        velocity[i] = v[chain * quads + q];
    }
    float squared_speed = group_sum(own_dot(velocity, velocity));
    vec4 record = diagnostics[chain];  // energy, sums of |v|^2/(d-1) and |change of H|, largest defect before x and v are put right
    uint begin = params[6];
    uint level = 0u;
    bool entered = false;
    float e = 0.0;

    for (uint step = begin; step < begin + params[1]; ++step) {
        while (step >= level_end[level]) {
            ++level;
            entered = false;
        }
        uint table = level_at(chain, level);
        vec4 law = level_table[table];  // kappa_scale, logw_shift, step size, e^(-gamma h)
        float spread = level_table[table + 1u].x;
        float h = law.z;
        if (!entered) e = energy_and_score(chain, law.x, law.y).energy;
        entered = true;
        float before = e + 0.5 * squared_speed;

        FOR_OWN(i, q) velocity[i] += (0.5 * h) * force[i];
        float kicked = group_sum(own_dot(velocity, velocity));
        geodesic(0.5 * h, kicked);
        ornstein_uhlenbeck(params[2] + step, chain, law.w, spread);
        float thermal = group_sum(own_dot(velocity, velocity));
        geodesic(0.5 * h, thermal);

        float squared_length = group_sum(own_dot(state, state));
        float shrink = inverse_sqrt(squared_length);
        FOR_OWN(i, q) state[i] *= shrink;
        e = energy_and_score(chain, law.x, law.y).energy;
        FOR_OWN(i, q) velocity[i] += (0.5 * h) * force[i];
        vec2 defect = group_sum(vec2(own_dot(state, velocity), own_dot(velocity, velocity)));
        FOR_OWN(i, q) velocity[i] -= defect.x * state[i];
        squared_speed = group_sum(own_dot(velocity, velocity));

        record.y += thermal / float(d - 1u);
        record.z += abs(e + 0.5 * squared_speed - before - 0.5 * (thermal - kicked));
        record.w = max(record.w, abs(sqrt(squared_length) - 1.0));
        if (defect.y > 0.0) record.w = max(record.w, abs(defect.x) * inverse_sqrt(defect.y));
    }

    if (params[7] != 0u) {  // the last dispatch: the energy is the last level's, even where that has no steps
        if (!entered || level + 1u < levels) {
            vec4 law = level_table[level_at(chain, levels - 1u)];
            e = energy_and_score(chain, law.x, law.y).energy;
        }
        record.x = e;
    }
    FOR_OWN(i, q) {
        x[chain * quads + q] = state[i];
        v[chain * quads + q] = velocity[i];
    }
    if (gl_LocalInvocationIndex == 0u) diagnostics[chain] = record;
}
