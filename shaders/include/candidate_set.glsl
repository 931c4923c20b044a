// A row of `width` token weights with some tokens taken out, the candidates `ids`, read in blocks of
// BLOCK tokens. Each invocation owns 32 consecutive tokens of a block, so that sums can follow the
// order of the tokens. interface.glsl must define log_p, ids, width, pitch, k.
#ifndef EBMVK_CANDIDATE_SET_GLSL
#define EBMVK_CANDIDATE_SET_GLSL
#include "math.glsl"
#include "reduce.glsl"

const uint BLOCK = 32u * GROUP;
shared uint taken_bits[GROUP];

// Marks the candidates of row `row` among the tokens of the block that begins at `first`.
void mark_candidates(uint row, uint first) {
    barrier();
    taken_bits[gl_LocalInvocationIndex] = 0u;
    barrier();
    for (uint j = gl_LocalInvocationIndex; j < k; j += GROUP) {
        uint place = ids[row * k + j] - first;
        if (place < BLOCK) atomicOr(taken_bits[place / 32u], 1u << (place % 32u));
    }
    barrier();
}

// True if token 32 part + bit of the marked block exists and isn't a candidate.
bool outside(uint first, uint part, uint bit) {
    return first + 32u * part + bit < width && (taken_bits[part] >> bit & 1u) == 0u;
}

float log_probability(uint row, uint token) { return log_p[row * pitch + token]; }

#endif
