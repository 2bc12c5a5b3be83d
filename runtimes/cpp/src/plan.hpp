// The plan, which the graphs have been made by: a runtime only makes sure that it is one.

#pragma once

#include "json.hpp"

namespace skrr {

// Throws Malformed where it is none: a key is missing, or a source is not kept at its own position.
void check_plan(const Json& plan);

}  // namespace skrr
