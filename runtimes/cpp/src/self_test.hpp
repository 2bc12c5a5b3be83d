// Whether this machine computes what transformers computed where the bundle was made.

#pragma once

#include "bundle.hpp"
#include "skrr/encoder.hpp"

namespace skrr {

SelfTest run_self_test(const Bundle& bundle, const Encoder& encoder);

}  // namespace skrr
