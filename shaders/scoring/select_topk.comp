// Merges a block of scores into the best `k` so far, one row per workgroup; ties go to the lower
// id.
//
// The candidates are the `kept` best so far, whose ids are all lower than the block's, then the
// block in order of id. A radix search finds the k-th largest score; if there are ties, a second
// search finds the last candidate to keep. The candidates up to that one are collected in any order
// and sorted by (score descending, id ascending).
#version 450
#include "interface.glsl"
#include "ordered.glsl"

shared uint histogram[256];
shared uint found[2];  // digit, number wanted among the scores with this digit
shared uint taken;

uint row_of_scores;
uint row_of_best;

float score_at(uint candidate) {
    return candidate < params.kept ? best_scores[row_of_best + candidate]
                                   : scores[row_of_scores + candidate - params.kept];
}

uint id_at(uint candidate) {
    return candidate < params.kept ? best_ids[row_of_best + candidate] : params.first_id + candidate - params.kept;
}

// Finds the histogram's digit that holds the `wanted`-th largest, and the number wanted of it.
void pick_digit(uint wanted) {
    if (gl_LocalInvocationIndex != 0u) return;
    uint digit = 255u;
    while (histogram[digit] < wanted) wanted -= histogram[digit--];
    found[0] = digit;
    found[1] = wanted;
}

void clear_histogram() {
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < 256u; i += GROUP) histogram[i] = 0u;
    barrier();
}

// The `wanted`-th largest ordered score of all candidates; `wanted` becomes its rank among equal
// ones.
uint search_score(uint count, inout uint wanted, out uint equal) {
    uint prefix = 0u;
    for (uint shift = 24u;; shift -= 8u) {
        clear_histogram();
        for (uint c = gl_LocalInvocationIndex; c < count; c += GROUP) {
            uint key = ordered(score_at(c));
            if (shift == 24u || (key >> (shift + 8u)) == prefix) atomicAdd(histogram[(key >> shift) & 255u], 1u);
        }
        barrier();
        pick_digit(wanted);
        barrier();
        prefix = (prefix << 8) | found[0];
        wanted = found[1];
        equal = histogram[found[0]];
        if (shift == 0u) return prefix;
    }
}

// The `wanted`-th candidate, counted from the first, among those with score `key`.
uint search_candidate(uint count, uint key, uint wanted) {
    uint prefix = 0u;
    for (uint shift = 24u;; shift -= 8u) {
        clear_histogram();
        for (uint c = gl_LocalInvocationIndex; c < count; c += GROUP)
            if (ordered(score_at(c)) == key && (shift == 24u || (~c >> (shift + 8u)) == prefix))
                atomicAdd(histogram[(~c >> shift) & 255u], 1u);
        barrier();
        pick_digit(wanted);
        barrier();
        prefix = (prefix << 8) | found[0];
        wanted = found[1];
        if (shift == 0u) return ~prefix;
    }
}

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    row_of_scores = gl_WorkGroupID.x * stride;
    row_of_best = (params.first_row + gl_WorkGroupID.x) * k;
    uint count = params.kept + params.columns;
    uint keep = min(k, count);

    uint wanted = keep;
    uint equal;
    uint threshold = search_score(count, wanted, equal);
    uint last = 0xffffffffu;
    if (equal > wanted) last = search_candidate(count, threshold, wanted);

    for (uint i = gl_LocalInvocationIndex; i < SORTED; i += GROUP) best[i] = NOTHING;
    if (gl_LocalInvocationIndex == 0u) taken = 0u;
    barrier();
    for (uint c = gl_LocalInvocationIndex; c < count; c += GROUP) {
        uint key = ordered(score_at(c));
        if (key > threshold || (key == threshold && c <= last)) best[atomicAdd(taken, 1u)] = uvec2(key, id_at(c));
    }
    sort_best();
    for (uint i = gl_LocalInvocationIndex; i < keep; i += GROUP) {
        best_scores[row_of_best + i] = unordered(best[i].x);
        best_ids[row_of_best + i] = best[i].y;
    }
}
