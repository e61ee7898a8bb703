// What comm/transport.hpp says of GPUs, in a build without CUDA.
#include "comm/transport.hpp"
#include "longspan/error.hpp"

namespace longspan::comm {

std::unique_ptr<Transport> staged_transport(int) { internal_error("keys are to move between GPUs in a build without CUDA"); }
const NcclFound& find_nccl() {
  static const NcclFound none{"", "this program was built without CUDA"};
  return none;
}
std::unique_ptr<Transport> nccl_transport(const Communicator&, int, double) {
  internal_error("keys are to move between GPUs in a build without CUDA");
}

std::unique_ptr<Transport> peer_transport(int) { internal_error("keys are to move between GPUs in a build without CUDA"); }
std::string why_no_peer_access(const Communicator&, int) { return find_nccl().why_not; }

}  // namespace longspan::comm
