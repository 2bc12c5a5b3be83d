// Whether this machine computes what transformers computed where the bundle was made.

#pragma once

#include <functional>

#include "bundle.hpp"
#include "skrr/encoder.hpp"

namespace skrr {

// Of an encoder that is open: how it tokenises, if it does, and runs ids without doing to the rows what the pipeline
// does.
SelfTest run_self_test(const Bundle& bundle, const Info& info,
                       const std::function<Ids(const std::vector<std::string>&)>& tokenize,
                       const std::function<Output(const Ids&)>& run);

}  // namespace skrr
