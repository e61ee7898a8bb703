#include "comm/pool_exchange.hpp"

#include "comm/transport.hpp"

namespace longspan::comm {

namespace {

constexpr int64_t kMessagesAhead = 256;  // sends are taken before their step while fewer messages are in flight

class HostExchange : public PoolExchange {
 public:
  HostExchange(const Communicator& ranks, std::byte* pool, int64_t block_bytes)
      : exchange_(ranks, block_bytes), pool_(pool), block_bytes_(block_bytes) {}

  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
    exchange_.start(tag, in_place(receives), in_place(sends));
  }
  bool takes_sends_ahead() const override { return exchange_.messages_in_flight() < kMessagesAhead; }
  void progress() override { exchange_.progress(); }
  bool received(int tag) override { return exchange_.received(tag); }
  void finish_receives(int tag) override { exchange_.finish_receives(tag); }
  void finish_sends(int tag) override { exchange_.finish_sends(tag); }
  void set_timeout(double seconds) override { exchange_.set_timeout(seconds); }
  int64_t bytes_received() const override { return exchange_.bytes_received(); }
  int64_t bytes_sent() const override { return exchange_.bytes_sent(); }

 private:
  std::vector<BlockExchange::Message> in_place(const std::vector<Message>& messages) const {
    std::vector<BlockExchange::Message> placed;
    for (const Message& message : messages) {
      placed.push_back({message.peer, {}});
      for (int32_t slot : message.slots) placed.back().pieces.push_back({pool_ + slot * block_bytes_, 1});  // those that abut are joined
    }
    return placed;
  }

  BlockExchange exchange_;
  std::byte* pool_;
  int64_t block_bytes_;
};

}  // namespace

std::unique_ptr<PoolExchange> MpiTransport::between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) {
  return std::make_unique<HostExchange>(ranks, pool, block_bytes);
}

}  // namespace longspan::comm
