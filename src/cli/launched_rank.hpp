// This process's rank as its launcher tells it, without MPI: for texts that should come once under mpirun.
#pragma once

#include <cstdlib>

namespace longspan::cli {

// 0 when there is no launcher.
inline int launched_rank() {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* value = std::getenv(variable)) return std::atoi(value);
  return 0;
}

}  // namespace longspan::cli
