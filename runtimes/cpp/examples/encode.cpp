// example_cpp BUNDLE PROMPT... : prints the shape of each output, and the norm of each prompt's first row in it.

#include <cmath>
#include <iostream>
#include <skrr/encoder.hpp>

void print(const skrr::Tensor& tensor) {
  if (tensor.shape.empty()) return;  // the bundle has no such output
  std::cout << tensor.name;
  for (const std::int64_t size : tensor.shape) std::cout << ' ' << size;
  std::cout << '\n';
  const std::size_t prompts = static_cast<std::size_t>(tensor.shape[0]);
  for (std::size_t prompt = 0; prompt < prompts; ++prompt) {
    const float* row = &tensor.values[prompt * (tensor.values.size() / prompts)];
    double square = 0;
    for (std::int64_t i = 0; i < tensor.shape.back(); ++i) square += static_cast<double>(row[i]) * row[i];
    std::cout << std::sqrt(square) << '\n';
  }
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " BUNDLE PROMPT...\n";
    return 2;
  }
  try {
    const skrr::Encoder encoder(argv[1]);
    const skrr::Output output = encoder.encode(std::vector<std::string>(argv + 2, argv + argc));
    print(output.rows);
    print(output.pooled);
  } catch (const skrr::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
