// C entry point to the Hopper kernel for programs that load it at run time (hopper_bench, tests/bench).
#include "kernels/cuda/hopper_forward.hpp"
#include "longspan/error.hpp"

namespace longspan {
Error::Error(std::vector<Problem> problems)
    : std::runtime_error(problems.front().what + ": " + problems.front().seen), problems_(std::move(problems)) {}
}  // namespace longspan

extern "C" void longspan_forward_hopper(const longspan::kernels::cuda::DeviceStep* step, cudaStream_t stream) {
  longspan::kernels::cuda::forward_hopper(*step, stream);
}
