// What the library and its plug-in libskrr_openvino.so agree on; both are of one build.

#pragma once

#include <memory>

#include "skrr/export.h"
#include "text_model.hpp"

extern "C" SKRR_EXPORT void skrr_open_text_model(const char* graph, const char* vocabulary,
                                                 std::unique_ptr<skrr::TextModel>& model);
