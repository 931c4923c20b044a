// The bipartition of n Gaussian units that loses the least information, by the search of Queyranne
// (1998); see ebmvk/model/integration.py. One workgroup.
//
// n - 1 times: order the groups of units so that each next one shares the most information with
// those before it. The last one is a candidate, and joins the one before it. `given` holds the
// covariance of the units that aren't ordered yet, given those that are; so what a group shares with
// them is the difference of the log determinants of its block there and in `whole`.
#version 450
#include "interface.glsl"
#include "math.glsl"
#include "pair.glsl"

const uint N = UNITS;

shared vec2 whole[N * N];
shared vec2 given[N * N];
shared vec2 block[N * N];
shared uint unit[N];         // the units, group after group
shared uint begin[N];        // of each group in `unit`, in order of age
shared uint size[N];
shared uint moved[N];
shared bool gone[N];         // units that are ordered
shared bool taken[N];        // groups that are ordered
shared float own[N];
shared float gain[N];
shared bool best_part[N];
shared float best;
shared uint last, before;

uint me, step;

void fill(bool from_whole) {
    for (uint i = me; i < N * N; i += step) block[i] = from_whole ? whole[i] : given[i];
    barrier();
}

// log det of a group's rows and columns in `block`. Elimination overwrites these.
float log_det(uint group) {
    float found = 0.0;
    for (uint a = begin[group]; a < begin[group] + size[group]; ++a) {
        uint k = unit[a];
        vec2 pivot = block[k * N + k];
        precise float fine = log_accurate(pivot.x) + pivot.y / pivot.x;
        found += fine;
        for (uint b = a + 1u; b < begin[group] + size[group]; ++b) {
            uint i = unit[b];
            vec2 factor = over(block[i * N + k], pivot);
            for (uint c = a + 1u; c < begin[group] + size[group]; ++c) {
                uint j = unit[c];
                block[i * N + j] = minus(block[i * N + j], times(factor, block[k * N + j]));
            }
        }
    }
    return found;
}

// Conditions `given` on the units of a group.
void condition(uint group) {
    for (uint a = begin[group]; a < begin[group] + size[group]; ++a) {
        uint k = unit[a];
        vec2 pivot = given[k * N + k];
        barrier();
        if (me == 0u) gone[k] = true;
        barrier();
        for (uint at = me; at < N * N; at += step) {
            uint i = at / N, j = at % N;
            if (gone[i] || gone[j]) continue;
            given[at] = minus(given[at], times(over(given[i * N + k], pivot), given[k * N + j]));
        }
        barrier();
    }
}

// Takes the next group: of the first `groups` groups that aren't taken, the one that shares the most
// information with those that are.
void choose(uint groups) {
    uint found = N;
    for (uint g = 0u; g < groups; ++g)
        if (!taken[g] && (found == N || gain[g] < gain[found])) found = g;
    before = last;
    last = found;
    taken[found] = true;
}

void keep(bool first) {
    float information = -0.5 * gain[last];
    if (!first && !(information < best)) return;
    best = information;
    for (uint i = 0u; i < N; ++i) best_part[i] = false;
    for (uint a = 0u; a < size[last]; ++a) best_part[unit[begin[last] + a]] = true;
}

// The last two groups become one, which is then the youngest.
void join(uint groups) {
    uint at = 0u, groups_left = 0u;
    uint old_begin[2] = uint[2](begin[before], begin[last]), old_size[2] = uint[2](size[before], size[last]);
    for (uint i = 0u; i < N; ++i) moved[i] = unit[i];
    for (uint g = 0u; g < groups; ++g) {
        if (g == before || g == last) continue;
        uint from = begin[g], many = size[g];
        begin[groups_left] = at;
        size[groups_left++] = many;
        for (uint a = 0u; a < many; ++a) unit[at++] = moved[from + a];
    }
    begin[groups_left] = at;
    size[groups_left] = old_size[0] + old_size[1];
    for (uint which = 0u; which < 2u; ++which)
        for (uint a = 0u; a < old_size[which]; ++a) unit[at++] = moved[old_begin[which] + a];
}

void main() {
    me = gl_LocalInvocationIndex;
    step = gl_WorkGroupSize.x;
    for (uint i = me; i < N * N; i += step) whole[i] = vec2(high[high_offset + i], low[low_offset + i]);
    for (uint i = me; i < N; i += step) {
        unit[i] = begin[i] = i;
        size[i] = 1u;
    }
    barrier();
    for (uint groups = N; groups > 1u; --groups) {
        fill(true);
        for (uint g = me; g < groups; g += step) {
            own[g] = log_det(g);
            taken[g] = g == 0u;
        }
        for (uint i = me; i < N * N; i += step) given[i] = whole[i];
        for (uint i = me; i < N; i += step) gone[i] = false;
        if (me == 0u) last = 0u;
        barrier();
        for (uint turn = 1u; turn < groups; ++turn) {
            condition(last);
            fill(false);
            for (uint g = me; g < groups; g += step)
                if (!taken[g]) gain[g] = log_det(g) - own[g];
            barrier();
            if (me == 0u) choose(groups);
            barrier();
        }
        if (me == 0u) {
            keep(groups == N);
            join(groups);
        }
        barrier();
    }
    for (uint i = me; i < N; i += step) part[part_offset + i] = best_part[i] ? 1u : 0u;
    if (me == 0u) information[information_offset] = best;
}
