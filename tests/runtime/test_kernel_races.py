"""The kernel that chooses tokens under ThreadSanitizer: its threads never touch the same memory without a barrier between them.

Taking away any one barrier of the sources makes this fail, so none is missing and none is too many.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.host_kernels import build

RACES = """
int main() {
    const int card = 70, end = 9;
    for (float top_p : {0.0f, 0.9f}) for (float top_k : {0.0f, 5.0f}) for (float temperature : {0.0f, 1.0f}) {
        std::vector<float> logits(2 * 2 * card);
        for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i * i));
        Settings settings = {2.0f, temperature, top_p, top_k};
        unsigned long long seed = 1;
        int delays[] = {0, 1};
        long long tokens[2 * end], fed[2], length, special = card;
        std::fill(std::begin(tokens), std::end(tokens), -1);
        State state = {1, end, end, 0, 0, 0};
        const float* in = logits.data();
        const Settings* how = &settings;
        const unsigned long long* key = &seed;
        const double* none = nullptr;
        const int* lags = delays;
        long long *out = tokens, *next = fed, *before = &length;
        State* counters = &state;
        int books = 2, size = card, columns = 1, room = end;
        void* arguments[] = {&in, &books, &size, &columns, &room, &how, &key, &none, &lags, &special, &out, &next, &before, &counters};
        launch_choose_float(arguments, 2, 5, true);
        if (state.column != 2 || state.failed) return 2;
    }
}
"""


def test_threads_do_not_race(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = tmp_path / "races"
    try:
        build(program, "-fsanitize=thread", "-g", more=RACES)
    except AssertionError as error:
        if "cannot find" not in str(error):  # the linker's words for a library that is not there
            raise
        pytest.skip("g++ has no ThreadSanitizer here")
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer can't run with this kernel's layout of memory")
    assert done.returncode == 0, done.stderr
