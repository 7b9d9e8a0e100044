// Images of many stacks read to where they belong; what is read is what `StackImages` reads by its plain code.
#include <cerrno>
#include <cstdint>
#include <fcntl.h>
#include <unistd.h>

namespace {

// 0, what the system says is wrong, or -1 where the file ends early
int64_t read_at(int file, char* into, int64_t bytes, int64_t offset) {
    while (bytes > 0) {
        const ssize_t done = pread(file, into, static_cast<size_t>(bytes), offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? errno : -1;
        into += done, offset += done, bytes -= done;
    }
    return 0;
}

}  // namespace

// Images `index` of stack s, those from starts[s] to starts[s + 1], into the places `row` of `out`, `bytes` each; the stacks of one thread.
extern "C" void read_stacks(const char* const* paths, const int64_t* offsets, const int64_t* starts, const int64_t* index,
                            const int64_t* row, int64_t bytes, char* out, int64_t* wrong, int64_t stacks, int64_t thread, int64_t threads) {
    for (int64_t stack = thread; stack < stacks; stack += threads) {
        const int file = open(paths[stack], O_RDONLY | O_CLOEXEC);
        wrong[stack] = file < 0 ? errno : 0;
        for (int64_t first = starts[stack], last; first < starts[stack + 1] && !wrong[stack]; first = last) {
            last = first + 1;
            while (last < starts[stack + 1] && index[last] == index[last - 1] + 1 && row[last] == row[last - 1] + 1) ++last;
            wrong[stack] = read_at(file, out + row[first] * bytes, (last - first) * bytes, offsets[stack] + index[first] * bytes);
        }
        if (file >= 0) close(file);
    }
}
