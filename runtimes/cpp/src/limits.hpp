// How much one call may ask for.

#pragma once

#include <cstddef>
#include <string>

#include "error.hpp"

namespace skrr {

// No encoder comes near; a slip in a size must not make us read or allocate the whole memory.
inline constexpr std::size_t kMaxTokens = std::size_t{1} << 24;

inline void check_size(std::size_t batch, std::size_t sequence) {
  std::size_t tokens = 0;
  if (__builtin_mul_overflow(batch, sequence, &tokens) || tokens > kMaxTokens) {
    throw bad_input(std::to_string(batch) + "x" + std::to_string(sequence) + " tokens exceed the " +
                    std::to_string(kMaxTokens) + " of one call");
  }
}

}  // namespace skrr
