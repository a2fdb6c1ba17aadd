#pragma once

#include <algorithm>
#include <cstdint>

#include "simt/simt.h"

namespace quantaria::ops {

/// The columns as steps, and as groups; runs are of 32 columns.
struct CodedSteps {
  int steps;
  int whole;         // all but the last one, if that is cut short
  int last_columns;  // of the last step
  int last_words;    // of a row of codes in it
  int runs;
  int groups;
  int group_runs;
  int groups_met;     // that a step has a part of, at most
  int groups_passed;  // that a step moves on, and by how many runs beyond them
  int runs_beyond;
};

/// The part that does not depend on what a step's columns hold. Groups begin and end with runs.
template <class Tile>
CodedSteps steps_of_groups(int64_t runs, int64_t group_runs) {
  CodedSteps s{};
  s.runs = static_cast<int>(runs);
  s.steps = (s.runs + Tile::kRuns - 1) / Tile::kRuns;
  s.group_runs = static_cast<int>(std::max<int64_t>(1, group_runs));
  s.groups = (s.runs + s.group_runs - 1) / s.group_runs;
  s.groups_passed = Tile::kRuns / s.group_runs;
  s.runs_beyond = Tile::kRuns % s.group_runs;
  // Steps that begin anywhere in a group may meet one more than they have room for, and the rest of another.
  const bool together = s.group_runs % Tile::kRuns == 0 || s.runs_beyond == 0;
  s.groups_met = together ? std::max(1, s.groups_passed) : std::min(Tile::kRuns, s.groups_passed + 2);
  return s;
}

/// After which runs of a block's columns a group's sum is due: where the group ends, or the columns do.
class GroupEnds {
 public:
  __device__ __forceinline__ GroupEnds(const CodedSteps& steps, int begin, int end)
      : group_runs_(steps.group_runs), rest_((end < steps.runs ? end : steps.runs) - begin) {
    due_ = begin % group_runs_;
    due_ = group_runs_ - due_ < rest_ ? group_runs_ - due_ : rest_;
    rest_ -= due_;
  }
  /// Run `run` of this step is summed.
  __device__ __forceinline__ bool after(int run) const { return run + 1 == due_; }
  /// To the group after the one that is due; false if there is none.
  __device__ __forceinline__ bool next() {
    const int runs = group_runs_ < rest_ ? group_runs_ : rest_;
    due_ += runs;
    rest_ -= runs;
    return runs > 0;
  }
  __device__ __forceinline__ void step_done(int runs) { due_ -= runs; }

 private:
  int group_runs_;
  int rest_;  // runs after the one that is due
  int due_;   // runs from this step's first one to the end of the group
};

}  // namespace quantaria::ops
