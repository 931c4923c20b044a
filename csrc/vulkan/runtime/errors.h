// The errors of a Vulkan device, as types. Messages are for people.
#pragma once

#include <stdexcept>
#include <string>

namespace ebmvk {

// No loader, no driver, no such device, or a device that lacks what we need.
struct Unavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An allocation failed; the message has the sizes.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device was lost, hung, or did not run submitted work. It stays lost.
struct DeviceLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An update left the points half replaced. The device is fine.
struct Torn : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device's limits do not allow these shapes.
struct Unsupported : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

}  // namespace ebmvk
