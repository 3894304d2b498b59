// The threads that share a kernel's work: a few that wait for it awake for a moment, then sleep.
//
// Not OpenMP's: a decode step is some hundred short pieces of work, and where a process has more OpenMP threads than
// processors, because another thread of it once computed something, its waiting threads sleep at once and each piece
// pays for waking them. Work is taken chunk by chunk, so a thread that the system has paused holds up one chunk only.
#pragma once

#include <cstdint>

namespace medley {

// How many threads share work from now on, the caller among them. Any thread.
void set_num_threads(int64_t num_threads);
int64_t num_threads();

// Calls call(context, chunk) once for each chunk, on any of the threads; returns when all are done. Where another
// thread's work is under way, the caller does its own alone.
void share(int64_t num_chunks, void (*call)(const void *, int64_t), const void *context);

// The same for ranges of items: calls work(first, last) for parts of 0 .. num_items, each of at least `fewest` items.
template <typename Work>
void share_items(int64_t num_items, int64_t fewest, const Work &work) {
    constexpr int64_t CHUNKS_PER_THREAD = 4;
    const int64_t most = CHUNKS_PER_THREAD * num_threads(), wanted = (num_items + fewest - 1) / fewest;
    const int64_t num_chunks = num_threads() == 1 ? 1 : wanted < most ? wanted : most;
    struct Context {
        const Work &work;
        int64_t num_items, num_chunks;
    } context{work, num_items, num_chunks};
    share(
        num_chunks,
        [](const void *given, int64_t chunk) {
            const auto &own = *static_cast<const Context *>(given);
            own.work(chunk * own.num_items / own.num_chunks, (chunk + 1) * own.num_items / own.num_chunks);
        },
        &context);
}

}  // namespace medley
