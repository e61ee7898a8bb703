// The consumer warp groups of the Hopper kernel: 64 rows of an item each, S = Q·Kᵀ, online softmax, O += P·V.
//
// A consumer issues Q·Kᵀ of one entry and P·V of the entry before together, and its softmax runs beside the other's products. Measured
// without gain: turns of the consumers (FlashAttention-3's ping-pong), exponentials while P·V is under way, no maximum at all until the
// probabilities show that it is needed, sums behind the exponentials, ring slots moved to uniform registers by hand, run() unrolled, one
// code for masked steps (a quarter of the instruction cache's misses, and slower), an item's first product before the results of the one
// before are stored, one consumer started later than the other, states brought to the L2 cache by the producer, streaming stores, O not
// multiplied where no maximum has moved. Quicker to compile, but slower: one call of first() and of finish() for all that need it (small
// windows and single blocks of 64 by 3 to 10 %), the products of a call in one statement (dense lists by 6 %).
//
// No branch may look divergent to the compiler: behind it, it keeps slots and addresses in each thread's registers. So every thread arrives
// at the barriers that say what has been read, not one lane of each warp (4 to 10 % faster).
#pragma once

#include <limits>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper/barrier.cuh"
#include "kernels/cuda/hopper/ring.cuh"
#include "kernels/cuda/hopper/softmax.cuh"
#include "kernels/cuda/hopper/wgmma.cuh"

namespace longspan::kernels::cuda::hopper {

// Where in the ring an entry lies: flags of its Message, its first slot, the parity of its barriers.
struct Place {
  uint32_t flags;
  int first_slot;
  uint32_t parity;
  // Of the halves that a consumer looks at.
  __device__ bool both(int consumer) const { return need(flags, consumer) == 3; }
  __device__ int first_key(int consumer) const { return need(flags, consumer) == 2 ? kSlotKeys : 0; }
  __device__ int slot(int consumer) const { return first_slot + (need(flags, consumer) == 2 && flags & kTwoSlots ? 1 : 0); }
};

// And what its mask is.
struct Entry : Place {
  int keys;
  uint32_t payload[2];
};

template <typename Element, class S>
struct Consumer {
  using Ring = Shared<S>;
  static constexpr int D = S::kHeadDim;
  static constexpr uint32_t kPanelBytes = sizeof(Ring::k[0]);
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Arguments& a;
  Ring& shared;
  const int group, lane;  // 0 … kConsumers − 1; in the warp
  const int own_row;      // of the part; the thread's other row is 8 further
  int row;                // own_row as a row of the query block
  int list = 0;           // of the part
  Walk<Ring::kSlots> walk;
  bool more = true;  // entries of this item may follow
  bool fresh;        // o is zero still

  uint32_t p[32];  // probabilities of the latest entry rounded, as A of P·V
  float o[D / 2];
  float m[2], l[2];
  float sum[2];  // this thread's share of the latest entry's probabilities, not in l yet

  // Waits for the item's next entry; whether this consumer looks at it.
  __device__ __forceinline__ bool look(Entry& entry) {
    const int slot = walk.slot;
    entry.first_slot = slot, entry.parity = walk.parity(slot);
    wait(&shared.k_full[slot], entry.parity);
    const Message<S> message = shared.messages[slot];
    // In a uniform register: the compiler serialises products in branches that might diverge (ptxas C7520), and addresses cost less.
    const uint32_t flags = __reduce_or_sync(0xffffffff, message.flags);
    entry.flags = flags, read_mask(message, entry);
    walk.pass(flags);
    more = !(flags & kLast);
    if (need(flags, group) == 0) {
      arrive(&shared.k_empty[slot]);
      wait(&shared.v_full[slot], entry.parity);  // a parity tells only neighbouring rounds apart: none is left out
      return false;
    }
    return true;
  }

  __device__ __forceinline__ void read_mask(const Message<S>& message, Entry& entry) const {
    entry.keys = message.keys, entry.payload[0] = message.payload[0][0], entry.payload[1] = message.payload[0][1];
    if constexpr (S::kLists == 2)
      if (list == 1) entry.payload[0] = message.payload[1][0], entry.payload[1] = message.payload[1][1];
  }
  __device__ uint32_t whole() const { return S::kLists == 1 ? kWhole : kWhole << group; }
  __device__ bool masked(const Place& entry) const { return entry.flags & kMasked << list; }

  // Issues S = Q·Kᵀ for Keys keys.
  template <int Keys>
  __device__ __forceinline__ void scores(int slot, float (&s)[Keys / 2]) {
    const Matrix q(shared.q[group][0]), k = Matrix(shared.k[0]).moved(slot * kPanelElements * 2);
    products_begin();
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint32_t panel = step / 4, within = step % 4 * 32;
      multiply<Element, Keys>(s, q.at(panel * sizeof(shared.q[0][0]) + within), k.at(panel * kPanelBytes + within), step > 0);
    }
    products_commit();
  }

  // Issues O += P·V for Keys keys.
  template <int Keys>
  __device__ __forceinline__ void output(int slot) {
    const Matrix v = Matrix(shared.v[0], kPanelBytes).moved(slot * kPanelElements * 2);
    products_begin();
#pragma unroll
    for (int step = 0; step < Keys / 16; ++step)
      multiply<Element>(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3], v.at(step * 16 * kPanel * 2));
    products_commit();
  }

  // scores() and output() for head_dim 64 and 128 keys, their products in turns. One of P·V takes as long to start, its A being registers,
  // as it takes; one of Q·Kᵀ beside it hides that (measured: 7 % of a dense kernel with three consumers; with two it is slower).
  __device__ __forceinline__ void both(int k_slot, int v_slot, float (&s)[64]) {
    static_assert(D == 64);
    const Matrix q(shared.q[group][0]), k = Matrix(shared.k[0]).moved(k_slot * kPanelElements * 2);
    const Matrix v = Matrix(shared.v[0], kPanelBytes).moved(v_slot * kPanelElements * 2);
    const auto output_step = [&](int step) {
      multiply<Element>(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3], v.at(step * 16 * kPanel * 2));
    };
    products_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      multiply<Element, 128>(s, q.at(32 * step), k.at(32 * step), step > 0);
      if (step < 3) output_step(step);
    }
    products_commit();
#pragma unroll
    for (int step = 3; step < 8; ++step) output_step(step);
    products_commit();
  }

  __device__ __forceinline__ Mask mask_of(const Entry& entry) const {
    return {static_cast<int>(form_in(entry.flags, list)), entry.keys, {entry.payload[0], entry.payload[1]}};
  }
  __device__ __forceinline__ void look_up_mask(const Entry& entry, uint32_t (&allowed)[2][4]) const {
    mask_of(entry).words(a.masks, row, entry.first_key(group), lane, allowed);
  }

  // l takes the latest entry in.
  __device__ __forceinline__ void settle() {
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] += row_sum(sum[r]), sum[r] = 0;
  }

  // Rows whose maximum has moved too far get a new one; settles l (keep_up() has done so, first() has nothing to settle). No product is
  // under way.
  template <int Count>
  __device__ __forceinline__ void raise(const float (&s)[Count]) {
    float high[2], factor[2];
    largest(s, high);
    settle();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float most = row_maximum(high[r]) * a.scale;
      const bool far = most > highest_without_new_maximum(m[r], l[r]);
      factor[r] = far ? exp2_approximate(__fsub_rn(m[r], most)) : 1;  // not in one operation with the product here and in two there
      if (far) m[r] = most;
      l[r] *= factor[r];
    }
    if (fresh) return;
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] *= factor[i / 2 % 2];
  }

  // The same in the rare case that there are such rows, while P·V of the entry before may be under way.
  template <int Count>
  __device__ __forceinline__ void keep_up(const float (&s)[Count]) {
    // The shuffles of settle() run beside the search for the maximum. Nothing but this tie to the scores keeps the assembler from putting
    // them between the products, which then wait for them. No bit changes: there are not that many heads.
    const uint32_t none = a.heads >> 31;
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = __uint_as_float(__float_as_uint(sum[r]) | (__float_as_uint(s[r]) & none));
    settle();
    float high[2];
    largest(s, high);
    if (__any_sync(0xffffffff, high[0] * a.scale > highest_without_new_maximum(m[0], l[0]) ||
                                   high[1] * a.scale > highest_without_new_maximum(m[1], l[1]))) {
      products_wait<0>();
      pin(o);
      raise(s);
    }
  }

  // An entry's scores become P. The exponentials take the longest, one every 8 cycles of a warp: all else that can runs beside them.
  template <int Count>
  __device__ __forceinline__ void soften(float (&s)[Count]) {
    const float shift[2] = {m[0] == -kInfinity ? 0 : m[0], m[1] == -kInfinity ? 0 : m[1]};  // not exp2(−∞ + ∞)
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = exp2_approximate(fmaf(s[i], a.scale, -shift[i / 2 % 2]));
      sum[i / 2 % 2] += s[i];
      if (i % 2) p[i / 2] = pack<Element>(s[i - 1], s[i]);
    }
  }

  // P of the item's first entry, or of one after finish().
  template <int Keys>
  __device__ __forceinline__ void first(const Entry& entry) {
    float s[Keys / 2];
    scores<Keys>(entry.slot(group), s);
    uint32_t allowed[2][4];
    const bool some = masked(entry);
    if (some) look_up_mask(entry, allowed);
    products_wait<0>();
    pin(s);
    arrive(&shared.k_empty[entry.first_slot]);
    if (some) forbid(s, allowed);
    raise(s);
    fresh = false;
    soften(s);
  }

  // What can be known of the next entry without waiting: its flags, 0 if its K is not there yet. Each warp finds that out for itself, so
  // that the four of a group may take different ways to the same products, in the same order. Products are for all four together and must
  // be the same instructions on all ways: the compiler may copy no call of scores(), output() or both(). (It has not: 152 HGMMA in a
  // kernel of head_dim 128, 116 in one of 64, as many as the calls make.)
  __device__ __forceinline__ uint32_t glance() {
    const bool there = test(&shared.k_full[walk.slot], walk.parity(walk.slot));
    // In a uniform register: the compiler serialises products in branches that might diverge (ptxas C7520), and addresses cost less.
    return __reduce_and_sync(0xffffffff, there & more ? shared.messages[walk.slot].flags : 0);
  }

  // From P of `current`, CurrentKeys keys, to P of `following`; whether `upcoming` is the next entry then. All products that this issues
  // are over when it returns, and no branch but that around masks touches their registers while they are under way: else the compiler
  // serialises them (ptxas C7515).
  template <int CurrentKeys, int Keys>
  __device__ __forceinline__ bool step(const Place& current, const Entry& following, Entry& upcoming) {
    float s[Keys / 2];
    pin(p), pin(o);
    scores<Keys>(following.slot(group), s);
    wait(&shared.v_full[current.first_slot], current.parity);
    output<CurrentKeys>(current.slot(group));
    uint32_t allowed[2][4];
    const bool some = masked(following);
    if (some) look_up_mask(following, allowed);
    products_wait<1>();
    pin(s);
    if (some) forbid(s, allowed);
    keep_up(s);
    products_wait<0>();
    pin(p), pin(o);
    arrive(&shared.k_empty[following.first_slot]), arrive(&shared.v_empty[current.first_slot]);
    const uint32_t flags = glance();
    soften(s);
    if (need(flags, group) == 0) return false;
    read_mask(shared.messages[walk.slot], upcoming);
    static_cast<Place&>(upcoming) = take(flags);
    return true;
  }

  template <int Keys>
  __device__ __forceinline__ void finish(const Place& entry) {
    wait(&shared.v_full[entry.first_slot], entry.parity);
    pin(p), pin(o);
    output<Keys>(entry.slot(group));
    settle();
    products_wait<0>();
    pin(o);
    arrive(&shared.v_empty[entry.first_slot]);
  }
  __device__ __forceinline__ void finish(const Place& entry) { entry.both(group) ? finish<128>(entry) : finish<64>(entry); }

  // finish() for a masked entry whose V holds NaN or ∞: 0·NaN must not reach rows that do not look at the key. First every row takes what
  // it looks at of these values as it is, whatever its probability was rounded to; then they are set to zero in the ring, for all
  // consumers (one or two); and the product takes the rest, with the bits that it would have without them.
  __device__ __forceinline__ void finish_carefully(const Entry& entry) {
    wait(&shared.v_full[entry.first_slot], entry.parity);
    take_nonfinite(entry);
    int first = group, count = 0;  // of the consumers that look at it
    for (int consumer = S::kConsumers - 1; consumer >= 0; --consumer)
      if (need(entry.flags, consumer)) first = consumer, ++count;
    // Of three consumers, 0 and 1 may meet for the next item while 1 and 2 have not met for this one: each pair has a barrier of its own.
    const int of_pair = S::kConsumers == 3 ? kTwoConsumers + first : kTwoConsumers;
    const auto meet = [&] { count == 2 ? named_sync(of_pair, 2 * kGroup) : named_sync(kOneConsumer + group, kGroup); };
    meet();                              // all have read
    constexpr int kPieces = kPanel / 8;  // of 16 bytes in a line
    const int lines = entry.flags & kTwoSlots ? 2 * kSlotKeys : kSlotKeys;
    for (int i = (group - first) * kGroup + threadIdx.x % kGroup; i < Ring::kPanels * lines * kPieces; i += count * kGroup) {
      auto* piece = reinterpret_cast<uint4*>(shared.v[i / (lines * kPieces)] + entry.first_slot * kPanelElements) + i % (lines * kPieces);
      uint4 words = *piece;
      words.x = finite_only<Element>(words.x), words.y = finite_only<Element>(words.y);
      words.z = finite_only<Element>(words.z), words.w = finite_only<Element>(words.w);
      *piece = words;
    }
    fence_proxy_async();
    meet();
    finish(entry);
  }

  __device__ __forceinline__ void take_nonfinite(const Entry& entry) {
    const int keys = entry.both(group) ? 2 * kSlotKeys : kSlotKeys;
    uint32_t allowed[2][4];
    mask_of(entry).words(a.masks, row, entry.first_key(group), 0, allowed);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int w = 0; w < 4; ++w)
        for (int key = 32 * w; key < 32 * w + 32 && key < keys; ++key) {
          if (!(allowed[r][w] >> (key % 32) & 1)) continue;
#pragma unroll
          for (int n = 0; n < D / 8; ++n) {  // 16-byte pieces are swizzled
            const uint16_t* line = &shared.v[n / 8][entry.slot(group) * kPanelElements + key * kPanel];
            const float2 v = unpack<Element>(*reinterpret_cast<const uint32_t*>(line + ((n % 8) ^ (key % 8)) * 8 + 2 * (lane % 4)));
            if (!isfinite(v.x)) o[4 * n + 2 * r] += v.x;
            if (!isfinite(v.y)) o[4 * n + 2 * r + 1] += v.y;
          }
        }
    }
  }

  // Whether the next entry might need the slot of V that `current` holds: the producer would wait for it for ever.
  __device__ __forceinline__ bool crowded(const Place& current) const {
    const int free = current.first_slot - walk.slot;
    return (free < 0 ? free + Ring::kSlots : free) < 2;
  }

  __device__ __forceinline__ Place take(uint32_t flags) {
    const Place place{flags, walk.slot, walk.parity(walk.slot)};
    walk.pass(flags);
    more = !(flags & kLast);
    return place;
  }

  // Runs of whole entries: step() without its choices. P of `current` waits to be multiplied, and so it does at the end.
  __device__ __forceinline__ void run(Place& current, Place following) {
    bool v_there = false;
    while (true) {
      float s[64];
      pin(p), pin(o);
      if constexpr (S::kConsumers == 3) {
        if (!v_there) wait(&shared.v_full[current.first_slot], current.parity);
        both(following.first_slot, current.first_slot, s);
      } else {
        scores<128>(following.first_slot, s);
        if (!v_there) wait(&shared.v_full[current.first_slot], current.parity);
        output<128>(current.first_slot);
      }
      products_wait<1>();
      pin(s);
      keep_up(s);
      products_wait<0>();
      pin(p), pin(o);
      arrive(&shared.k_empty[following.first_slot]), arrive(&shared.v_empty[current.first_slot]);
      v_there = test(&shared.v_full[following.first_slot], following.parity);
      const uint32_t flags = glance();
      soften(s);
      current = following;
      if (!(flags & whole())) return;
      following = {flags, walk.slot, walk.parity(walk.slot)};
      walk.pass(kTwoSlots);
      more = !(flags & kLast);
    }
  }

  // P of `following` next, P of `current` multiplied if it waits; whether `upcoming` has been found to be the next entry.
  __device__ __forceinline__ bool advance(const Place& current, const Entry& following, bool pending, Entry& upcoming) {
    if (!pending) {
      following.both(group) ? first<128>(following) : first<64>(following);
      return false;
    }
    if (current.both(group)) {
      return following.both(group) ? step<128, 128>(current, following, upcoming) : step<128, 64>(current, following, upcoming);
    }
    return following.both(group) ? step<64, 128>(current, following, upcoming) : step<64, 64>(current, following, upcoming);
  }

  __device__ __forceinline__ void entries() {
    Place current;
    Entry following;
    bool pending = false;  // P of `current` has not been multiplied with V yet
    bool found = false;    // `following` is the next entry
    more = true;
    while (more || found) {
      if (!found) {
        if (pending && crowded(current)) finish(current), pending = false;
        if (!look(following)) continue;
      }
      if (pending && current.flags & following.flags & whole()) {
        run(current, following);
        found = false;
        continue;
      }
      if (following.flags & kNonfinite) {
        if (pending) finish(current);
        following.both(group) ? first<128>(following) : first<64>(following);
        finish_carefully(following);
        pending = found = false;
        continue;
      }
      Entry upcoming;
      found = advance(current, following, pending, upcoming);
      current = following, pending = true;
      following = upcoming;
    }
    arrive(&shared.q_empty[group]);
    if (pending) finish(current);
  }

  __device__ __forceinline__ void read_state(int head, const Part& part) {
    fresh = part.begins;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      m[r] = -kInfinity, l[r] = 0, sum[r] = 0;
      const bool read = S::kContinues && !part.begins && own_row + 8 * r < part.rows;
      const int64_t state = (part.state_row + own_row + 8 * r) * a.heads + head;
      if (read) m[r] = a.m[state], l[r] = a.l[state];
      if constexpr (!S::kContinues || S::kLists == 1) continue;
      const auto* from = reinterpret_cast<const float2*>(a.o + state * D) + lane % 4;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const float2 pair = read ? from[4 * n] : float2{0, 0};
        o[4 * n + 2 * r] = pair.x, o[4 * n + 2 * r + 1] = pair.y;
      }
    }
    if constexpr (!S::kContinues) {
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = 0;
    }
  }

  // O from the item's first entry: zeros if the item begins; rows that are not the item's have some other's, which nobody wants.
  __device__ __forceinline__ void take_states() {
    const int slot = walk.slot;
    const uint32_t parity = walk.parity(slot);
    wait(&shared.k_full[slot], parity), wait(&shared.v_full[slot], parity);
    walk.pass(kTwoSlots);
    const auto& panels = group == 0 ? shared.k : shared.v;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int line = (own_row + 8 * r) * kPanel;  // of 16-byte pieces that are swizzled
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const uint16_t* part = &panels[n / 8][(slot + n / 4 % 2) * kPanelElements + line];
        const auto pair = *reinterpret_cast<const float2*>(part + ((2 * (n % 4) + lane % 4 / 2) ^ lane / 4) * 8 + lane % 2 * 4);
        o[4 * n + 2 * r] = pair.x, o[4 * n + 2 * r + 1] = pair.y;
      }
    }
    fence_proxy_async();  // without it about one item in 25,000 found the next keys where its last columns had been
    arrive(&shared.k_empty[slot]), arrive(&shared.v_empty[slot]);
  }

  __device__ __forceinline__ void write_state(int head, const Part& part) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (own_row + 8 * r >= part.rows) continue;
      const int64_t state = (part.state_row + own_row + 8 * r) * a.heads + head;
      if (lane % 4 == 0) a.m[state] = m[r], a.l[state] = l[r];
      auto* to = reinterpret_cast<float2*>(a.o + state * D) + lane % 4;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) to[4 * n] = float2{o[4 * n + 2 * r], o[4 * n + 2 * r + 1]};
    }
  }

  template <typename Output>
  __device__ __forceinline__ void round(uint32_t (&pairs)[2][D / 8]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Normalise normalise(l[r]);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) pairs[r][n] = pack<Output>(normalise(o[4 * n + 2 * r]), normalise(o[4 * n + 2 * r + 1]));
    }
  }

  __device__ __forceinline__ void write_output(int head, const Part& part) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = (part.q_row + own_row + 8 * r) * a.heads + head;
      if (lane % 4 == 0 && own_row + 8 * r < part.rows) a.lse[at] = natural_lse(m[r], l[r]);
    }
    if (a.output_type == ElementType::float32) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (own_row + 8 * r >= part.rows) continue;
        const Normalise normalise(l[r]);
        auto* to = reinterpret_cast<float2*>(a.out + ((part.q_row + own_row + 8 * r) * a.heads + head) * D * 4) + lane % 4;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) to[4 * n] = float2{normalise(o[4 * n + 2 * r]), normalise(o[4 * n + 2 * r + 1])};
      }
      return;
    }
    uint32_t pairs[2][D / 8];
    if (a.output_type == ElementType::bfloat16) {
      round<__nv_bfloat16>(pairs);
    } else {
      round<__half>(pairs);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // A row's four threads hold 2 columns of each 8: after the exchange each holds 8 columns of every fourth, 16 bytes to store.
      exchange(pairs[r], lane);
      if (own_row + 8 * r >= part.rows) continue;
      auto* to = reinterpret_cast<uint4*>(a.out + ((part.q_row + own_row + 8 * r) * a.heads + head) * D * 2) + lane % 4;
#pragma unroll
      for (int n = 0; n < D / 8; n += 4) to[n] = uint4{pairs[r][n], pairs[r][n + 1], pairs[r][n + 2], pairs[r][n + 3]};
    }
  }

  __device__ __forceinline__ void run() {
    for (int count = 0;; ++count) {
      wait(&shared.item_full[count % kItems], count / kItems % 2);
      const Announced<S>& item = shared.items[count % kItems];
      const Part part = item.parts[group];
      const int head = item.head;
      const bool stop = item.stop;
      arrive(&shared.item_empty[count % kItems]);
      if (stop) return;
      if constexpr (S::kLists == 2) list = part.list, row = part.half * kRows + own_row;
      read_state(head, part);
      wait(&shared.q_full[group], count % 2);
      if constexpr (S::kContinues && S::kLists == 1) take_states();  // not before Q is there (2 % faster)
      entries();
      if (part.ends) {
        write_output(head, part);
      } else {
        write_state(head, part);
      }
    }
  }
};

}  // namespace longspan::kernels::cuda::hopper
