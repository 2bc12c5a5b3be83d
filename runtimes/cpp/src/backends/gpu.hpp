// Whether there is a GPU that engines can run on.

#pragma once

namespace skrr {

bool has_gpu();

}  // namespace skrr
