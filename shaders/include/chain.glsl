// Shared by the integrators: a chain's state and velocity, the moves of a step, the level of a
// step. interface.glsl must define what energy.glsl needs, and d, levels, level_end, x,
// v.
#ifndef EBMVK_CHAIN_GLSL
#define EBMVK_CHAIN_GLSL
#include "energy.glsl"
#include "philox.glsl"

const uint STREAM_NOISE = 0u;
const uint STREAM_METROPOLIS = 2u;
const uint STREAM_NOISE_2 = 3u;

vec4 velocity[QUADS_PER];
float squared_speed;  // |v|^2
float thermal;        // |v|^2 right after the first O of a step
float heat;           // what the O of a step have added to |v|^2

// Where the noise of a step comes from, and how strong friction and noise are.
struct Bath {
    uint step_number;
    uint chain;
    float keep;
    float spread;
};

// Moves position and velocity along the geodesic, for a time t at speed w = |v|.
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
vec4 noise(uint step_number, uint chain, uint q, uint stream) {
    uvec4 counter = uvec4(step_number, params.first_chain + chain, q, stream);
    vec4 xi = normals(counter, uvec2(params.seed_low, params.seed_high));
    uvec4 coordinate = 4u * q + uvec4(0u, 1u, 2u, 3u);
    return mix(vec4(0.0), xi, lessThan(coordinate, uvec4(d)));
}

// O: friction and noise.
void ornstein_uhlenbeck(Bath bath, uint stream) {
    vec4 xi[QUADS_PER];
    FOR_OWN(i, q) xi[i] = noise(bath.step_number, bath.chain, q, stream);
    float along = group_sum(own_dot(state, xi));
    FOR_OWN(i, q) velocity[i] = bath.keep * velocity[i] + bath.spread * (xi[i] - along * state[i]);
}

// The force acts for the time share h. (The product stands inside the loop, because a compiler keeps
// one from before it in a register until the next kick.)
void kick(float share, float h) {
    FOR_OWN(i, q) velocity[i] += (share * h) * force[i];
}

void measure_speed() { squared_speed = group_sum(own_dot(velocity, velocity)); }

// The first O of a step.
void heat_1(Bath bath) {
    float cold = squared_speed;
    ornstein_uhlenbeck(bath, STREAM_NOISE);
    measure_speed();
    thermal = squared_speed;
    heat = thermal - cold;
}

// The second O of a step.
void heat_2(Bath bath) {
    float cold = squared_speed;
    ornstein_uhlenbeck(bath, STREAM_NOISE_2);
    measure_speed();
    heat += squared_speed - cold;
}

// Back onto the sphere. Returns the distance from it.
float project_state() {
    float squared_length = group_sum(own_dot(state, state));
    float shrink = inverse_sqrt(squared_length);
    FOR_OWN(i, q) state[i] *= shrink;
    return abs(sqrt(squared_length) - 1.0);
}

// Back into the tangent space of x. Returns |x.v| / |v| of before.
float project_velocity() {
    vec2 defect = group_sum(vec2(own_dot(state, velocity), own_dot(velocity, velocity)));
    FOR_OWN(i, q) velocity[i] -= defect.x * state[i];
    return defect.y > 0.0 ? abs(defect.x) * inverse_sqrt(defect.y) : 0.0;
}

void load_chain(uint chain) {
    FOR_OWN(i, q) {
        state[i] = x[chain * quads + q];
        velocity[i] = v[chain * quads + q];
    }
}

void store_chain(uint chain) {
    FOR_OWN(i, q) {
        x[chain * quads + q] = state[i];
        v[chain * quads + q] = velocity[i];
    }
}

// The level of a step, at or after `level`. After the very last step it is the last level, even if
// that has no steps.
uint level_of(uint step, uint end, uint level) {
    if (step == end && params.last != 0u) return levels - 1u;
    while (step < end && step >= level_end[level]) ++level;
    return level;
}

#endif
