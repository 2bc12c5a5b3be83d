// example_cpp BUNDLE PROMPT... : prints the size of the embeddings, and the norm of each prompt's first row.

#include <cmath>
#include <iostream>
#include <skrr/encoder.hpp>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " BUNDLE PROMPT...\n";
    return 2;
  }
  try {
    const skrr::Encoder encoder(argv[1]);
    const skrr::Output output = encoder.encode(std::vector<std::string>(argv + 2, argv + argc));
    std::cout << output.batch << " x " << output.sequence << " x " << output.hidden_size << '\n';
    for (std::int64_t prompt = 0; prompt < output.batch; ++prompt) {
      const float* row = output.last_hidden_state.data() + prompt * output.sequence * output.hidden_size;
      double square = 0;
      for (std::int64_t i = 0; i < output.hidden_size; ++i) square += static_cast<double>(row[i]) * row[i];
      std::cout << std::sqrt(square) << '\n';
    }
  } catch (const skrr::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
