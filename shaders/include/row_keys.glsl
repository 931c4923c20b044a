// Keys of values in rows, as unsigned numbers in the order in which values are sorted, and where the
// values are.
//
// interface.glsl must define the binding `values`, the push constants offset, stride, batch_1,
// batch_2, row_0, row_1, row_2 and descending, and the specialisation constant KIND.
#ifndef EBMVK_ROW_KEYS_GLSL
#define EBMVK_ROW_KEYS_GLSL
#include "bits.glsl"

const uint NONE = 0xffffffffu;  // key and id of a place without a value; comes after all others

// Where a row begins. Rows have up to three axes.
uint start_of(uint row) {
    return offset + row / (batch_1 * batch_2) * row_0 + row / batch_2 % batch_1 * row_1 + row % batch_2 * row_2;
}

// KIND 0: uint, 1: int, 2: float. NaN is above all numbers, and -0 equals 0.
uint key_of(uint bits) {
    uint key = bits;
    if (KIND == 1u) key = bits ^ SIGN_BIT;
    if (KIND == 2u) {
        if (bits == SIGN_BIT) bits = 0u;
        key = (bits & SIGN_BIT) != 0u ? ~bits : bits | SIGN_BIT;
        if ((bits & ~SIGN_BIT) > INFINITE_BITS) key = NONE;
    }
    return descending != 0u ? ~key : key;
}

#endif
