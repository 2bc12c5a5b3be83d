#include "plugin.hpp"

#include <dlfcn.h>

#include "../error.hpp"

namespace skrr {
namespace {

// It lies beside this library, or where the loader looks; it stays open, for what it made lives on.
void* find_plugin() { return dlopen("libskrr_openvino.so", RTLD_NOW | RTLD_LOCAL); }

}  // namespace

std::unique_ptr<TextModel> open_openvino(const std::string& graph, const std::string& vocabulary) {
  void* plugin = find_plugin();
  void* found = plugin == nullptr ? nullptr : dlsym(plugin, "skrr_open_text_model");
  if (found == nullptr) {
    throw missing_dependency("making ids of prompts for " + graph + " needs OpenVINO Tokenizers: " +
                             first_line(dlerror()) + "; configure skrr with -DOPENVINO_TOKENIZERS_ROOT=DIRECTORY");
  }
  std::unique_ptr<TextModel> model;
  reinterpret_cast<decltype(&skrr_open_text_model)>(found)(graph.c_str(), vocabulary.c_str(), model);
  return model;
}

}  // namespace skrr
