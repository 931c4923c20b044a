// Keeps the best `k` of each row's list, in which scores of earlier blocks come first and new ones
// follow in any order; one row per workgroup. Ties go to the lower id. Then sets the row's bar for the
// next block (append_scores.glsl).
//
// A list that fits into shared memory is sorted. In a longer one, a radix search finds the k-th
// largest score; if there are ties, a second search finds the last id to keep, and only the best are
// sorted.
#version 450
#include "interface.glsl"
#include "ordered.glsl"

const uint DIGITS = 256u;
const uint PART = 16u;  // digits whose counts are added up first
shared uint histogram[DIGITS];
shared uint part_sum[DIGITS / PART];
shared uint found_digit;
shared uint found_wanted;  // number wanted among the scores with this digit
shared uint taken;

uint first;  // of the row's list

uint key_at(uint place) { return ordered_bits(found[first + place].x); }

uvec2 entry_at(uint place) {
    uvec2 entry = found[first + place];
    return uvec2(ordered_bits(entry.x), entry.y);
}

// Finds the digit of the `wanted`-th largest score, and the number wanted of the scores with it.
void pick_digit(uint wanted) {
    for (uint p = gl_LocalInvocationIndex; p < DIGITS / PART; p += GROUP) {
        uint sum = 0u;
        for (uint i = 0u; i < PART; ++i) sum += histogram[p * PART + i];
        part_sum[p] = sum;
    }
    barrier();
    if (gl_LocalInvocationIndex == 0u) {
        uint p = DIGITS / PART - 1u;
        while (part_sum[p] < wanted) wanted -= part_sum[p--];
        uint digit = p * PART + PART - 1u;
        while (histogram[digit] < wanted) wanted -= histogram[digit--];
        found_digit = digit;
        found_wanted = wanted;
    }
    barrier();
}

void clear_histogram() {
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < DIGITS; i += GROUP) histogram[i] = 0u;
    barrier();
}

// The `wanted`-th largest key of the list; `wanted` becomes its rank among equal ones.
uint search_score(uint count, inout uint wanted, out uint equal) {
    uint prefix = 0u;
    for (uint shift = 24u;; shift -= 8u) {
        clear_histogram();
        for (uint c = gl_LocalInvocationIndex; c < count; c += GROUP) {
            uint key = key_at(c);
            if (shift == 24u || (key >> (shift + 8u)) == prefix) atomicAdd(histogram[(key >> shift) & 255u], 1u);
        }
        barrier();
        pick_digit(wanted);
        prefix = (prefix << 8) | found_digit;
        wanted = found_wanted;
        equal = histogram[found_digit];
        if (shift == 0u) return prefix;
    }
}

// The `wanted`-th lowest id among those with this key.
uint search_id(uint count, uint key, uint wanted) {
    uint prefix = 0u;
    for (uint shift = 24u;; shift -= 8u) {
        clear_histogram();
        for (uint c = gl_LocalInvocationIndex; c < count; c += GROUP)
            if (key_at(c) == key) {
                uint id = ~found[first + c].y;
                if (shift == 24u || (id >> (shift + 8u)) == prefix) atomicAdd(histogram[(id >> shift) & 255u], 1u);
            }
        barrier();
        pick_digit(wanted);
        prefix = (prefix << 8) | found_digit;
        wanted = found_wanted;
        if (shift == 0u) return ~prefix;
    }
}

// The least power of two that is at least `count`.
uint room_for(uint count) {
    uint room = 1u;
    while (room < count) room <<= 1;
    return room;
}

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    uint row = params.first_row + gl_WorkGroupID.x;
    first = gl_WorkGroupID.x * stride;
    uint count = counts[row];
    uint keep = min(k, params.first_id + params.columns);  // all points so far have lower ids

    uint room = room_for(count <= SORTED ? count : keep);
    for (uint i = gl_LocalInvocationIndex; i < room; i += GROUP)
        best[i] = i < count && count <= SORTED ? entry_at(i) : NOTHING;
    if (count > SORTED) {
        uint wanted = keep;
        uint equal;
        uint threshold = search_score(count, wanted, equal);
        uint last = 0xffffffffu;
        if (equal > wanted) last = search_id(count, threshold, wanted);
        if (gl_LocalInvocationIndex == 0u) taken = 0u;
        barrier();
        for (uint c = gl_LocalInvocationIndex; c < count; c += GROUP) {
            uvec2 candidate = entry_at(c);
            if (candidate.x > threshold || (candidate.x == threshold && candidate.y <= last))
                best[atomicAdd(taken, 1u)] = candidate;
        }
    }
    sort_best(room);
    for (uint i = gl_LocalInvocationIndex; i < keep; i += GROUP) {
        float score = unordered(best[i].x);
        found[first + i] = uvec2(floatBitsToUint(score), best[i].y);
        best_scores[row * k + i] = score;
        best_ids[row * k + i] = best[i].y;
    }
    if (gl_LocalInvocationIndex != 0u) return;
    bars[row] = keep == k ? best[k - 1u].x + 1u : 0u;
    counts[row] = keep;
}
