#include "engine/list_maker.hpp"

#include <chrono>
#include <utility>

namespace longspan::engine {

ListMaker::ListMaker(const plan::RankPlan& plan, int64_t bytes, int threads, Make make, Kept* kept)
    : plan_(plan), bytes_(bytes), spare_threads_(threads), make_(std::move(make)), kept_(kept) {
  if (!can_keep(plan, bytes)) kept_ = nullptr;
  if (kept_ != nullptr) kept_->resize(plan.stripes.size());
}

bool ListMaker::can_keep(const plan::RankPlan& plan, int64_t bytes) {
  int64_t all = 0;
  for (const plan::Stripe& stripe : plan.stripes) all += stripe.list_bytes;
  return all <= bytes / 2;
}

ListMaker::~ListMaker() { ended_ = true; }

// Beside those that wait and those in use. One stripe's beside another's always have it: the plan has seen to that, to within a row.
bool ListMaker::has_room() const {
  if (asked_ == plan_.stripes.size()) return false;
  if (kept_ != nullptr && (*kept_)[asked_]) return true;
  if (asked_ == taken_) return true;
  if (asked_ >= taken_ + plan::kListsAhead) return false;
  int64_t bytes = 0;
  for (size_t s = taken_ > 0 ? taken_ - 1 : 0; s <= asked_; ++s) bytes += plan_.stripes[s].list_bytes;
  return bytes <= bytes_;
}

void ListMaker::make_one() {
  const size_t stripe = asked_++;
  const bool is_kept = kept_ != nullptr && (*kept_)[stripe];
  if (!is_kept && has_thread() && !thread_) threads_.emplace(spare_threads_), thread_.emplace();
  Made& made = made_.emplace_back();
  if (is_kept)
    made.lists = (*kept_)[stripe];
  else if (thread_)
    made.done = thread_->submit([this, stripe, &made] {
      if (!ended_) made.lists = std::make_shared<const StripeLists>(make_(stripe, &*threads_));
    });
  else
    made.lists = std::make_shared<const StripeLists>(make_(stripe, nullptr));
}

bool ListMaker::make_ahead() {
  if (!has_room()) return false;
  do make_one();
  while (has_thread() && has_room());
  return true;
}

std::shared_ptr<const StripeLists> ListMaker::take(const std::function<void(std::future<void>&)>& wait) {
  if (made_.empty()) make_one();
  Made& first = made_.front();
  if (first.done.valid()) wait(first.done);
  std::shared_ptr<const StripeLists> lists = std::move(first.lists);
  made_.pop_front();
  if (kept_ != nullptr) (*kept_)[taken_] = lists;
  ++taken_;
  if (has_thread()) make_ahead();
  return lists;
}

const StripeLists* ListMaker::next() {
  if (made_.empty() && asked_ < plan_.stripes.size()) make_one();
  if (made_.empty()) return nullptr;
  Made& first = made_.front();
  if (first.done.valid()) {
    if (first.done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return nullptr;
    first.done.get();
  }
  if (kept_ != nullptr) (*kept_)[taken_] = first.lists;  // the device may keep what it makes ready of them
  return first.lists.get();
}

}  // namespace longspan::engine
