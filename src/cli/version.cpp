#include <fmt/format.h>

#include "cli/commands.hpp"
#include "io/description.hpp"
#include "kernels/cpu/attention.hpp"
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
  const std::string cuda = LONGSPAN_CUDA_VERSION;
  return report::pairs_text({{"longspan", report::version()},
                             {"git commit", report::git_commit()},
                             {"compiler", fmt::format("{} ({})", report::compiler(), report::build_type())},
                             {"MPI", fmt::format("built with {}, found {}", built_with_mpi(), first_line(comm::library_version()))},
                             {"HDF5", fmt::format("built with {}, found {}", io::hdf5_built_with(), io::hdf5_running_with())},
                             {"CPU kernels", fmt::format("{}; bfloat16: {}", kernels::cpu::target_name(ElementType::float32),
                                                         kernels::cpu::target_name(ElementType::bfloat16))},
                             {"CUDA", cuda.empty() ? "not built in" : fmt::format("not built in (toolkit {} was there)", cuda)},
                             {"NCCL", "not built in"}});
}

}  // namespace longspan::cli
