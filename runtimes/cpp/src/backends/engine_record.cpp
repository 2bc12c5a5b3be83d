#include "engine_record.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "../error.hpp"
#include "../text.hpp"

namespace skrr {
namespace {

constexpr int kAmpere = 80;  // the first that engines for other GPUs than their own run on

// Major and minor of a version; 0.0 of what is none.
std::pair<int, int> version_of(const std::string& text) {
  std::pair<int, int> version;
  return std::sscanf(text.c_str(), "%4d.%4d", &version.first, &version.second) == 2 ? version : std::pair(0, 0);
}

std::string size_of(const std::array<std::int64_t, 2>& size) {
  return std::to_string(size[0]) + "x" + std::to_string(size[1]);
}

// MIN:OPT:MAX, each BATCHxSEQUENCE.
void read_profile(const std::string& text, EngineRecord& record) {
  std::array<int, 6> sizes{};
  int end = 0;
  const int found = std::sscanf(text.c_str(), "%7dx%7d:%7dx%7d:%7dx%7d%n", &sizes[0], &sizes[1], &sizes[2], &sizes[3],
                                &sizes[4], &sizes[5], &end);
  const bool rises = sizes[0] >= 1 && sizes[1] >= 1 && sizes[4] >= sizes[0] && sizes[5] >= sizes[1];
  if (found != 6 || static_cast<std::size_t>(end) != text.size() || !rises) {
    throw Malformed("'" + text + "' is not a profile MIN:OPT:MAX");
  }
  record.least = {sizes[0], sizes[1]};
  record.most = {sizes[4], sizes[5]};
}

bool is_true(const Json& entry, const char* key) { return member(entry, key) == true; }

}  // namespace

EngineRecord EngineRecord::of(const Json& entry) {
  try {
    EngineRecord record{};
    record.file = as_text(member(entry, "file"));
    record.library = as_text(member(entry, "library"));
    record.compute_capabilities = as_texts(member(entry, "compute_capabilities"));
    read_profile(as_text(member(entry, "profile")), record);
    record.version_compatible = is_true(entry, "version_compatible");
    record.hardware_compatible = is_true(entry, "hardware_compatible");
    record.stripped = is_true(entry, "stripped");
    return record;
  } catch (const Malformed& error) {
    throw bad_bundle(std::string("the manifest's engine is malformed: ") + error.what());
  }
}

void EngineRecord::check_library(const std::string& title, const std::string& version) const {
  const bool later = version_compatible && version_of(version) >= version_of(library);
  if (version != library && !later) {
    throw bad_bundle(file + " was built by " + title + " " + library + ", and " + version +
                     " is installed: install that version, or export again");
  }
}

void EngineRecord::check_gpu(int capability) const {
  const std::string here = std::to_string(capability);
  const bool listed =
      std::find(compute_capabilities.begin(), compute_capabilities.end(), here) != compute_capabilities.end();
  if (!listed && !(hardware_compatible && capability >= kAmpere)) {
    throw bad_bundle(file + " was built for GPUs of compute capability " + join(compute_capabilities) +
                     ", and this one has " + here + ": export again for it");
  }
}

void EngineRecord::check_size(std::int64_t batch, std::int64_t sequence) const {
  if (batch < least[0] || batch > most[0] || sequence < least[1] || sequence > most[1]) {
    throw bad_input("this engine takes sizes from " + size_of(least) + " to " + size_of(most) + ", not " +
                    size_of({batch, sequence}) + ": export again with another --profile");
  }
}

}  // namespace skrr
