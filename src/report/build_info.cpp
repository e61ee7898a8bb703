#include "report/build_info.hpp"

#include "report/git_commit.hpp"  // generated

namespace longspan::report {

std::string version() { return LONGSPAN_VERSION; }
std::string git_commit() { return LONGSPAN_GIT_COMMIT; }
std::string compiler() { return LONGSPAN_COMPILER; }
std::string build_type() { return LONGSPAN_BUILD_TYPE; }

}  // namespace longspan::report
