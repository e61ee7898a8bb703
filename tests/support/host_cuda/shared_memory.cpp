#include "tests/support/host_cuda/shared_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <string>

namespace longspan::testing {

namespace {

std::mutex mutex;
std::map<const void*, SharedMemoryName> names;

std::byte* mapped(int file, int64_t bytes) {
  void* const memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

}  // namespace

std::byte* allocate_shared(int64_t bytes) {
  bytes = std::max<int64_t>(1, bytes);
  const int file = memfd_create("longspan-test", MFD_CLOEXEC);
  std::byte* const memory = file >= 0 && ftruncate(file, bytes) == 0 ? mapped(file, bytes) : nullptr;
  if (memory == nullptr) {
    if (file >= 0) close(file);
    throw std::bad_alloc();
  }
  const std::lock_guard lock(mutex);
  names[memory] = {getpid(), file, bytes};
  return memory;
}

void free_shared(void* memory) {
  if (memory == nullptr) return;
  const std::lock_guard lock(mutex);
  const SharedMemoryName name = names.extract(memory).mapped();
  munmap(memory, static_cast<size_t>(name.bytes));
  close(static_cast<int>(name.file));
}

SharedMemoryName name_of_shared(const void* memory) {
  const std::lock_guard lock(mutex);
  const auto found = names.find(memory);
  return found == names.end() ? SharedMemoryName{} : found->second;
}

const std::byte* begin_of_shared(const void* memory) {
  const std::lock_guard lock(mutex);
  auto after = names.upper_bound(memory);
  if (after == names.begin()) return nullptr;
  const auto& [begin, name] = *std::prev(after);
  const auto* const first = static_cast<const std::byte*>(begin);
  return memory < first + name.bytes ? first : nullptr;
}

std::byte* open_shared(const SharedMemoryName& name) {
  const std::string path = "/proc/" + std::to_string(name.process) + "/fd/" + std::to_string(name.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  std::byte* const memory = mapped(file, name.bytes);
  close(file);
  return memory;
}

void close_shared(std::byte* memory, int64_t bytes) { munmap(memory, static_cast<size_t>(bytes)); }

}  // namespace longspan::testing
