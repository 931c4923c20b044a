// Shared by the integrators: a chain's state and velocity, the moves of a step, the level of a
// step. interface.glsl must define what energy.glsl needs, SUBGROUPS, and d, levels, level_end, x, v;
// NOISES is how often a step draws noise.
//
// Between two evaluations of the energy every move stays in the space that x, v, the force and one
// noise vector span: kicks, drifts along geodesics, friction, and both projections. So the moves
// change only the coefficients of x and v, from the ten inner products of the four vectors, which
// one reduction finds; then x and v are written once. In float32 this rounds like the moves
// themselves: either way, an inner product of two vectors is off by a few roundings of the product of
// their lengths. x is normalised and v projected with products that were summed from the stored
// vectors, so errors don't add up from step to step.
#ifndef EBMVK_CHAIN_GLSL
#define EBMVK_CHAIN_GLSL
#include "energy.glsl"
#include "philox.glsl"

const uint STREAM_NOISE = 0u;
const uint STREAM_METROPOLIS = 2u;
const uint STREAM_NOISE_2 = 3u;
const uint NO_NOISE = 2u;  // instead of the number of a noise in a step, 0 or 1

mat4 products;        // of x, v, the force and the noise, in this order
vec4 position;        // coefficients of x
vec4 motion;          // and of v
uint measured_noise;  // the number of the noise, or NO_NOISE
float squared_speed;  // |v|^2

// What a chain keeps while energies are evaluated.
struct Kept {
    vec4 record;    // energy, sums of |v|^2/(d-1) and of |change of H|, largest defect of x and v before projection
    float before;   // the energy H where a step or trajectory began
    float thermal;  // |v|^2 right after the first O of a step
    float heat;     // what the O moves of a step have added to |v|^2
    float accepts;
    float old_energy;
};
#ifdef RESIDENT  // candidates need the registers
shared Kept kept[LANES];
#define KEPT kept[gl_SubgroupInvocationID]
#else
Kept kept;
#define KEPT kept
#endif

// Where the noise of a step comes from, and how strong friction and noise are.
struct Bath {
    uint step_number;
    uint chain;
    float keep;
    float spread;
};

// Standard normals of one step, zero beyond coordinate d.
vec4 noise(uint step_number, uint chain, uint q, uint number) {
    uint stream = number == 0u ? STREAM_NOISE : STREAM_NOISE_2;
    uvec4 counter = uvec4(step_number, params.first_chain + chain, q, stream);
    vec4 xi = normals(counter, uvec2(params.seed_low, params.seed_high));
    uvec4 coordinate = 4u * q + uvec4(0u, 1u, 2u, 3u);
    return mix(vec4(0.0), xi, lessThan(coordinate, uvec4(d)));
}

#ifdef RESIDENT  // noise comes from the subgroups that wait while subgroup 0 moves the chain

shared vec4 whole_noise[NOISES * ROW];
vec4 drawn[NOISES];

#define NOISE(i, q) whole_noise[measured_noise * ROW + q]
#define FOR_DRAWN(q) for (uint q = GROUP - 1u - gl_LocalInvocationIndex; q < quads; q += GROUP)

// Draws the first noise of step `next`, and the second of `step_number`.
void draw_ahead(uint next, uint step_number, uint chain) {
    FOR_DRAWN(q) {
        drawn[0] = noise(next, chain, q, 0u);
        if (NOISES > 1u) drawn[NOISES - 1u] = noise(step_number, chain, q, 1u);
    }
}

// Makes the state known to all, and the new noise to subgroup 0, which has used the noise before it.
void share_state(bool drew) {
    barrier();
    if (drew)
        FOR_DRAWN(q) [[unroll]] for (uint n = 0u; n < NOISES; ++n) whole_noise[n * ROW + q] = drawn[n];
}

void prepare_noise(Bath bath, uint number) {}

#else

vec4 velocity[QUADS_PER];
vec4 drawn[QUADS_PER];

#define NOISE(i, q) drawn[i]

void draw_ahead(uint next, uint step_number, uint chain) {}
void share_state(bool drew) {}

void prepare_noise(Bath bath, uint number) {
    FOR_OWN(i, q) drawn[i] = noise(bath.step_number, bath.chain, q, number);
}

#endif

#if defined(USE_SUBGROUP) && !defined(RESIDENT)
shared vec4 product_slot[2][3u * SUBGROUPS];  // as reduce_slot
#endif

#ifdef USE_SUBGROUP
#define SUM subgroupAdd
#else
#define SUM group_sum
#endif

// Sums over all coordinates. noisy: false if the last four, b.zw and c, are 0.
void sum_products(inout vec4 a, inout vec4 b, inout vec2 c, bool noisy) {
    a = SUM(a);
    if (noisy) {
        b = SUM(b);
        c = SUM(c);
    } else {
        b.xy = SUM(b.xy);
    }
#if defined(USE_SUBGROUP) && !defined(RESIDENT)
    if (SUBGROUPS == 1u) return;
    uint turn = reduce_turn;
    reduce_turn ^= 1u;
    if (subgroupElect()) {
        product_slot[turn][3u * gl_SubgroupID] = a;
        product_slot[turn][3u * gl_SubgroupID + 1u] = b;
        if (noisy) product_slot[turn][3u * gl_SubgroupID + 2u].xy = c;
    }
    barrier();
    a = product_slot[turn][0];
    b = product_slot[turn][1];
    if (noisy) c = product_slot[turn][2].xy;
    for (uint i = 1u; i < SUBGROUPS; ++i) {
        a += product_slot[turn][3u * i];
        b += product_slot[turn][3u * i + 1u];
        if (noisy) c += product_slot[turn][3u * i + 2u].xy;
    }
#endif
}

// Finds the inner products of the stored vectors, including noise `number` of the step unless that is
// NO_NOISE. Moves begin with this.
void measure(Bath bath, uint number) {
    measured_noise = number;
    position = vec4(1.0, 0.0, 0.0, 0.0);
    motion = vec4(0.0, 1.0, 0.0, 0.0);
    bool noisy = number != NO_NOISE;
    if (noisy) prepare_noise(bath, number);
    vec4 a = vec4(0.0);  // x.x, x.v, x.force, v.v
    vec4 b = vec4(0.0);  // v.force, force.force, x.noise, v.noise
    vec2 c = vec2(0.0);  // force.noise, noise.noise
    FOR_OWN(i, q) {
        vec4 here = STATE(i, q), along = VELOCITY(i, q), pull = FORCE(i, q);
        a = vec4(add_dot(a.x, here, here), add_dot(a.y, here, along), add_dot(a.z, here, pull),
                 add_dot(a.w, along, along));
        b.xy = vec2(add_dot(b.x, along, pull), add_dot(b.y, pull, pull));
        if (noisy) {
            vec4 xi = NOISE(i, q);
            b.zw = vec2(add_dot(b.z, here, xi), add_dot(b.w, along, xi));
            c = vec2(add_dot(c.x, pull, xi), add_dot(c.y, xi, xi));
        }
    }
    sum_products(a, b, c, noisy);
    products = mat4(a.xyz, b.z, a.yw, b.x, b.w, a.z, b.xy, c.x, b.zw, c);
    squared_speed = products[1].y;
}

// The inner product of two vectors that are given by their coefficients.
float inner(vec4 a, vec4 b) { return dot(a, products * b); }

// At least 0: the square of a velocity that consists of roundings only can come out negative.
void measure_speed() { squared_speed = max(inner(motion, motion), 0.0); }

#define COMBINED(c, here, along, pull) ((c).x * (here) + (c).y * (along) + (c).z * (pull))

// Stores x and v.
void settle() {
    FOR_OWN(i, q) {
        vec4 here = STATE(i, q), along = VELOCITY(i, q), pull = FORCE(i, q);
        vec4 to = COMBINED(position, here, along, pull);
        vec4 turned = COMBINED(motion, here, along, pull);
        if (measured_noise != NO_NOISE) {
            vec4 xi = NOISE(i, q);
            to += position.w * xi;
            turned += motion.w * xi;
        }
        STATE(i, q) = to;
        VELOCITY(i, q) = turned;
    }
}

// Quad q of v.
vec4 moved_velocity(uint i, uint q) {
    vec4 turned = COMBINED(motion, STATE(i, q), VELOCITY(i, q), FORCE(i, q));
    return measured_noise == NO_NOISE ? turned : turned + motion.w * NOISE(i, q);
}

// Stores v; x hasn't moved.
void settle_velocity() {
    FOR_OWN(i, q) VELOCITY(i, q) = moved_velocity(i, q);
}

// Moves position and velocity along the geodesic, for a time t at speed w = |v|.
void geodesic(float t, float squared_speed) {
    float w = sqrt(squared_speed);
    float angle = w * t;
    vec2 cs = cos_sin(angle);
    float lever = t * sinc(angle);  // sin(wt)/w
    vec4 from = position;
    position = cs.x * from + lever * motion;
    motion = cs.x * motion - (w * cs.y) * from;
}

// O: friction, and the noise that was measured.
void ornstein_uhlenbeck(Bath bath) {
    const vec4 xi = vec4(0.0, 0.0, 0.0, 1.0);
    float along = dot(products[3], position);
    motion = bath.keep * motion + bath.spread * (xi - along * position);
}

// The force acts for the time share h.
void kick(float share, float h) { motion.z += share * h; }

// The first O of a step.
void heat_1(Bath bath) {
    float cold = squared_speed;
    ornstein_uhlenbeck(bath);
    measure_speed();
    KEPT.thermal = squared_speed;
    KEPT.heat = squared_speed - cold;
}

// The second O of a step.
void heat_2(Bath bath) {
    float cold = squared_speed;
    ornstein_uhlenbeck(bath);
    measure_speed();
    KEPT.heat += squared_speed - cold;
}

// Moves x back onto the sphere. Returns the distance that it was off.
float project_state() {
    float squared_length = inner(position, position);
    position *= inverse_sqrt(squared_length);
    return abs(sqrt(squared_length) - 1.0);
}

// Moves v back into the tangent space at x. Returns |x.v| / |v| from before.
float project_velocity() {
    vec4 image = products * motion;
    vec2 defect = vec2(image.x, dot(motion, image));
    motion.x -= defect.x;
    measure_speed();
    return defect.y > 0.0 ? abs(defect.x) * inverse_sqrt(defect.y) : 0.0;
}

void load_chain(uint chain) {
#ifdef RESIDENT
    OWNERS FOR_OWN(i, q) {
        whole_state[q] = q < quads ? x[chain * quads + q] : vec4(0.0);
        whole_velocity[q] = q < quads ? v[chain * quads + q] : vec4(0.0);
        [[unroll]] for (uint n = 0u; n < NOISES; ++n) whole_noise[n * ROW + q] = vec4(0.0);
    }
#else
    FOR_OWN(i, q) {
        state[i] = x[chain * quads + q];
        velocity[i] = v[chain * quads + q];
    }
#endif
}

void store_chain(uint chain) {
    OWNERS {
        FOR_OWN(i, q) if (q < quads) {
            x[chain * quads + q] = STATE(i, q);
            v[chain * quads + q] = VELOCITY(i, q);
        }
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
