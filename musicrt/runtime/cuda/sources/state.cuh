// The counters of a sequence of tokens that is being written: `STATE` of musicrt/runtime/cuda/arguments.py, int32 [6].
#pragma once

struct State {
    int column;   // the one that is written next
    int stop;     // the first one that is not to be written now, at most `end`
    int end;      // the columns of the sequence
    int call;     // of the random numbers
    int failed;   // the first column whose logits could not be chosen from, 0 for none
    int arrived;  // blocks of the current launch that are done

    __device__ bool goes_on() const { return column < stop && failed == 0; }
};
