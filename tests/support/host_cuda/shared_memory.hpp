// Memory of this process that others of the host can open.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longspan::testing {

struct SharedMemoryName {
  int64_t process, file, bytes;
};

std::byte* allocate_shared(int64_t bytes);  // throws std::bad_alloc
void free_shared(void* memory);
SharedMemoryName name_of_shared(const void* memory);   // where it begins; bytes is 0 if it is none
const std::byte* begin_of_shared(const void* memory);  // of the piece that this address is in; null if it is in none
std::byte* open_shared(const SharedMemoryName& name);  // null if that cannot be
void close_shared(std::byte* memory, int64_t bytes);

}  // namespace longspan::testing
