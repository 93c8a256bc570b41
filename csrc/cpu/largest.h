// The k largest entries of a row.

namespace copilot::COPILOT_TARGET {

// Elements that are converted at a time: as floats they stay in the first cache, and a lane's sum of them is accurate.
constexpr int64_t kRowChunk = 256 * kLanes;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Writes the elements of a row from `start` on, kRowChunk of them at most, to `chunk` as floats, and kNothing behind
// the last one up to a whole number of vectors. Returns how many floats that makes.
template <class T>
inline int64_t read_chunk(const T* row, int64_t start, int64_t count, float* chunk) {
  const int64_t size = std::min(kRowChunk, count - start);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(chunk + i, load(row + start + i));
  if (i == size) return size;
  store(chunk + i, load_some(row + start + i, size - i, kNothing));
  return i + kLanes;
}

template <class T>
inline float element(const T* row, int64_t index) {
  return load_some(row + index, 1, 0.0f)[0];
}

inline bool any_lane(Ints mask) {
#if defined(__x86_64__) && COPILOT_LANES == 16
  return _mm512_movepi32_mask(bits<__m512i>(mask)) != 0;
#elif defined(__x86_64__) && COPILOT_LANES == 8
  return _mm256_movemask_ps(bits<__m256>(mask)) != 0;
#else
  using Longs = int64_t __attribute__((vector_size(sizeof(Ints))));
  const Longs wide = bits<Longs>(mask);
  int64_t all = 0;
  for (int64_t i = 0; i < kLanes / 2; ++i) all |= wide[i];
  return all != 0;
#endif
}

struct Entry {
  float value;
  int64_t index;
};

// Of equal entries the one with the smaller index, and NaN is less than -infinity.
inline bool is_larger(const Entry& a, const Entry& b) {
  if (std::isnan(a.value) != std::isnan(b.value)) return std::isnan(b.value);
  return a.value > b.value || (!(a.value < b.value) && a.index < b.index);
}

// Finds the k largest entries, by is_larger.
//
// The row is dealt out to kHands hands. The k-th largest of their best entries has k entries that are no smaller, so
// that what is smaller needs no look: a first sweep that only takes maxima leaves few entries to the second.
class Largest {
 public:
  explicit Largest(int64_t k) : k_(k), room_(2 * k + kBlock) { found_.reserve(room_ + kBlock); }

  // Their values and indices, in no particular order; valid until the next call.
  //
  // On the way `rest(values, start, size)` gets the other entries, as floats and a whole number of vectors at a time,
  // with kNothing where one is left out: those from `start` on, and at the end (from 0) those that seemed to be among
  // the largest.
  template <class T, class Rest>
  std::vector<Entry>& of(const T* row, int64_t count, Rest&& rest) {
    found_.clear();
    dropped_.clear();
    bar_ = best_of_hands(row, count);
    is_taken_ = false;
    alignas(64) float chunk[kRowChunk];
    for (int64_t start = 0; start < count; start += kRowChunk) {
      const int64_t end = std::min(start + kRowChunk, count);
      float* block = chunk;
      int64_t i = start;
      for (; i + kBlock <= end; i += kBlock, block += kBlock) {
        Floats most = broadcast(kNothing);
        for (int64_t lane = 0; lane < kBlock; lane += kLanes) {
          const Floats value = load(row + i + lane);
          store(block + lane, value);
          most = maximum(value, most);
        }
        if (any_lane(passes(most))) take(block, i, kBlock);
      }
      int64_t size = i - start;
      if (i < end) {
        size += read_chunk(row, i, count, block);
        take(block, i, end - i);
      }
      rest(chunk, start, size);
    }
    keep_k();
    for (int64_t i = 0; static_cast<int64_t>(found_.size()) < k_; ++i) {
      const float value = element(row, i);
      if (std::isnan(value)) found_.push_back({value, i});
    }
    dropped_.resize((dropped_.size() + kLanes - 1) / kLanes * kLanes, kNothing);
    rest(dropped_.data(), 0, static_cast<int64_t>(dropped_.size()));
    return found_;
  }

  // The largest entry of the row at hand, NaN left aside.
  float largest() const { return largest_; }

 private:
  static constexpr int64_t kBlock = 64;
  static constexpr int64_t kHands = 256;

  // The k-th largest of the hands' best entries.
  template <class T>
  float best_of_hands(const T* row, int64_t count) {
    alignas(64) float best[kHands], dealt[kHands];
    std::fill(best, best + kHands, kNothing);
    const auto deal = [&](const auto* from, int64_t size) {
      for (int64_t i = 0; i < size; i += kLanes) store(best + i, maximum(load(from + i), load(best + i)));
    };
    int64_t start = 0;
    for (; start + kHands <= count; start += kHands) deal(row + start, kHands);
    deal(dealt, read_chunk(row, start, count, dealt));
    largest_ = *std::max_element(best, best + kHands);
    if (k_ > kHands) return kNothing;
    std::nth_element(best, best + (k_ - 1), best + kHands, [](float a, float b) { return a > b; });
    return best[k_ - 1];
  }

  // Indices grow: once the bar is the k-th largest so far, an entry that equals it comes too late.
  template <class Value>
  auto passes(Value value) const {
    return is_taken_ ? value > bar_ : value >= bar_;
  }

  void take(float* block, int64_t start, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      if (!passes(block[i])) continue;
      found_.push_back({block[i], start + i});
      block[i] = kNothing;
    }
    if (static_cast<int64_t>(found_.size()) >= room_) keep_k();
  }

  void keep_k() {
    if (static_cast<int64_t>(found_.size()) < k_) return;
    std::nth_element(found_.begin(), found_.begin() + (k_ - 1), found_.end(), is_larger);
    for (auto entry = found_.begin() + k_; entry != found_.end(); ++entry) dropped_.push_back(entry->value);
    found_.resize(k_);
    bar_ = found_.back().value;
    is_taken_ = true;
  }

  int64_t k_, room_;
  std::vector<Entry> found_;  // reserved once
  std::vector<float> dropped_;
  float largest_ = kNothing;
  float bar_ = kNothing;   // what is smaller is not among the k largest,
  bool is_taken_ = false;  // nor is what equals it
};

}  // namespace copilot::COPILOT_TARGET
