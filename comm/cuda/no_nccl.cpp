// What comm/transport.hpp says of NCCL, in a build that found no nccl.h.
#include "comm/transport.hpp"
#include "longspan/error.hpp"

namespace longspan::comm {

const NcclFound& find_nccl() {
  static const NcclFound none{"", "this program was built without nccl.h"};
  return none;
}
std::unique_ptr<Transport> nccl_transport(const Communicator&, int, double) { internal_error("NCCL is to be used in a build without it"); }

}  // namespace longspan::comm
