// The devices that a test of the engine runs on: CPUs, and a GPU where there is one, with keys moved by each transport it has. All ranks of
// the test share the host's GPUs.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/gpus.hpp"

namespace longspan::testing {

enum class TestDevice { cpu, gpu };
constexpr TestDevice kTestDevices[] = {TestDevice::cpu, TestDevice::gpu};
inline std::string name_of(TestDevice device) { return device == TestDevice::cpu ? "cpu" : "gpu"; }

struct OpenDevice {
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<comm::Transport> transport;
  std::string why_not;

  // Collective.
  static OpenDevice of(TestDevice kind, const comm::Communicator& ranks) {
    OpenDevice open;
    open.transport = std::make_unique<comm::MpiTransport>();
    if (kind == TestDevice::cpu) {
      open.device = std::make_unique<kernels::cpu::CpuDevice>(2);
      return open;
    }
    const kernels::Gpus gpus = kernels::find_gpus();
    open.why_not = gpus.why_none;
    if (ranks.size() > 1) open.why_not = "one rank";
    if (ranks.max(open.why_not.empty() ? 0 : 1) > 0) return open;
    open.device = kernels::open_gpu(gpus.usable[static_cast<size_t>(ranks.local_rank()) % gpus.usable.size()], {.host_bytes = 1 << 20});
    return open;
  }
};

}  // namespace longspan::testing
