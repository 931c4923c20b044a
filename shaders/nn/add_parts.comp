// Adds up the parts of sums that add_runs has left, one after the other.
#version 450
#include "interface.glsl"

void main() {
    uint column = gl_WorkGroupID.x * GROUP + gl_LocalInvocationIndex;
    uint chunk = gl_WorkGroupID.y + gl_WorkGroupID.z * gl_NumWorkGroups.y;
    uint first = chunk * each;
    uint end = first + each;
    if (end >= count || column >= width) return;  // no run continues after the last chunk
    uint key = keys[end - 1u];
    bool begins = first == 0u || keys[first - 1u] != key;
    if (!begins || key >= limit || keys[end] != key) return;
    float sum = partial[(2u * chunk + 1u) * width + column];
    do {
        ++chunk;
        end = min(end + each, count);
        sum += partial[2u * chunk * width + column];
    } while (end < count && keys[end - 1u] == key && keys[end] == key);
    sums[sums_offset + key * width + column] = sum;
}
