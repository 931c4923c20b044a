// E(x) = -log(e^background + sum_j e^(logw_j + kappa_j mu_j.x)) and its tangent score, one chain
// per workgroup.
//
// interface.glsl must define points, ids, logw, kappa, background; the specialisation constants
// GROUP, QUADS_PER, CANDIDATES (at least k); and the push constants quads, k.
#ifndef EBMVK_ENERGY_GLSL
#define EBMVK_ENERGY_GLSL
#include "math.glsl"
#include "reduce.glsl"

// Stands for log 0. Infinities are avoided, because compilers may assume that there are none.
const float LOG_ZERO = -1.0e30;

// sum + a.b as four multiply-adds: `dot` would take a product, three multiply-adds and a sum.
float add_dot(float sum, vec4 a, vec4 b) { return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum)))); }

// A term with logarithm a has responsibility e^(a - top) scale. along: x.(sum_j kappa_j rho_j mu_j).
struct Mixture {
    float energy;
    float top;
    float scale;
    float along;
};
Mixture mixture = Mixture(0.0, 0.0, 0.0, 0.0);  // at the state that was evaluated last

// sums: the sum of e^(a_j - top), with the background, and the sum of these times kappa_j mu_j.x.
Mixture mixture_of(float top, vec2 sums) {
    bool empty = top < 0.5 * LOG_ZERO;  // neither a candidate nor the background has weight
    float scale = empty ? 0.0 : 1.0 / sums.x;
    return Mixture(empty ? INFINITE : -(top + log_accurate(sums.x)), top, scale, sums.y * scale);
}

#ifdef RESIDENT
#include "resident.glsl"
#else
#include "streamed.glsl"
#endif

#endif
