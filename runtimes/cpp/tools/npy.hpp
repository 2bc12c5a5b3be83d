// NumPy's file format.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Writes an fp32 array, row-major; the file appears whole or not at all. Throws std::runtime_error.
void write_npy(const std::string& path, const std::vector<std::int64_t>& shape, const std::vector<float>& values);
