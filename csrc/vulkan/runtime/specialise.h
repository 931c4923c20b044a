// Fixes the specialisation constants of a SPIR-V module before a driver sees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebmvk {

// The module with values[i] for the constant with SpecId i; constants beyond keep their default. In
// the result every constant is an ordinary one and every expression of constants a number, so no
// driver can size a shared array by a default in place of the value, as MoltenVK before 1.3 does.
// Throws std::invalid_argument if the module is cut off, and std::logic_error if it uses what our
// kernels don't: constants that are not 32-bit words, other operations between constants.
std::vector<std::uint32_t> specialise(const std::uint32_t* code, std::size_t bytes,
                                      const std::vector<std::uint32_t>& values);

}  // namespace ebmvk
