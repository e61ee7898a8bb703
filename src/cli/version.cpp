#include <fmt/format.h>

#include "cli/commands.hpp"
#include "comm/transport.hpp"
#include "io/description.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/gpus.hpp"
#include "report/build_info.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

// The headers this was compiled with; the library found at run time may be another.
std::string built_with_mpi() {
#if defined(OMPI_MAJOR_VERSION)
  return fmt::format("Open MPI {}.{}.{}", OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION);
#elif defined(MPICH_VERSION)
  return fmt::format("MPICH {}", MPICH_VERSION);
#else
  return fmt::format("MPI {}.{}", MPI_VERSION, MPI_SUBVERSION);
#endif
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

std::string version_text() {
  const std::string cuda = kernels::cuda_toolkit_version(), driver = kernels::cuda_driver_version();
  const comm::NcclFound& nccl = comm::find_nccl();
  return report::pairs_text({{"longspan", report::version()},
                             {"git commit", report::git_commit()},
                             {"compiler", fmt::format("{} ({})", report::compiler(), report::build_type())},
                             {"MPI", fmt::format("built with {}, found {}", built_with_mpi(), first_line(comm::library_version()))},
                             {"HDF5", fmt::format("built with {}, found {}", io::hdf5_built_with(), io::hdf5_running_with())},
                             {"CPU kernels", kernels::cpu::target_names()},
                             {"CUDA", cuda.empty()     ? "not built in"
                                      : driver.empty() ? fmt::format("built with {}, no driver here", cuda)
                                                       : fmt::format("built with {}, driver for {}", cuda, driver)},
                             {"NCCL", nccl.version.empty() ? nccl.why_not : "found " + nccl.version}});
}

}  // namespace longspan::cli
