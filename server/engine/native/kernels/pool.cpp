// Threads that share work chunk by chunk; see pool.h.

#include "pool.h"

#include <immintrin.h>

#include <atomic>
#include <mutex>
#include <thread>

namespace medley {
namespace {

// Times a thread looks for work before it sleeps: about 0.1 ms, longer than the Python between two kernels of a step.
constexpr int NUM_LOOKS = 2500;

// One piece of work at a time. `ticket` holds the number of the piece, in its upper half, and its next chunk. Who takes
// a chunk by raising it knows that the fields are those of this piece: they change after the last chunk is done.
struct Pool {
    std::mutex busy, growing;
    std::atomic<uint64_t> ticket{0};
    std::atomic<uint32_t> piece{0};
    std::atomic<int> num_asleep{0};
    std::atomic<int64_t> num_threads{1}, num_workers{0}, num_chunks{0}, num_done{0};
    std::atomic<void (*)(const void *, int64_t)> call{nullptr};
    std::atomic<const void *> context{nullptr};
};

// Never destroyed: its threads outlive whatever ends first at exit.
Pool &pool() {
    static Pool *only = new Pool;
    return *only;
}

// Takes chunks of a piece until none is left.
void work_on(Pool &own, uint32_t piece) {
    uint64_t ticket = own.ticket.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(ticket >> 32) == piece) {
        const auto chunk = static_cast<int64_t>(ticket & 0xffffffffu);
        const auto call = own.call.load(std::memory_order_relaxed);
        const void *context = own.context.load(std::memory_order_relaxed);
        if (chunk >= own.num_chunks.load(std::memory_order_relaxed)) return;
        if (!own.ticket.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
        call(context, chunk);
        own.num_done.fetch_add(1, std::memory_order_release);
        ticket = own.ticket.load(std::memory_order_acquire);
    }
}

void work_for_ever(int64_t index) {
    Pool &own = pool();
    uint32_t seen = 0;
    while (true) {
        uint32_t piece = own.piece.load(std::memory_order_acquire);
        for (int look = 0; piece == seen && look < NUM_LOOKS; ++look) {
            _mm_pause();
            piece = own.piece.load(std::memory_order_acquire);
        }
        if (piece == seen) {
            own.num_asleep.fetch_add(1);
            own.piece.wait(seen);
            own.num_asleep.fetch_sub(1);
            continue;
        }
        seen = piece;
        if (index < own.num_threads.load(std::memory_order_relaxed)) work_on(own, piece);
    }
}

}  // namespace

void set_num_threads(int64_t num_threads) {
    Pool &own = pool();
    const std::lock_guard<std::mutex> lock(own.growing);
    own.num_threads.store(num_threads);
    for (int64_t index = own.num_workers.load() + 1; index < num_threads; ++index) {
        std::thread(work_for_ever, index).detach();
        own.num_workers.store(index);
    }
}

int64_t num_threads() { return pool().num_threads.load(std::memory_order_relaxed); }

void share(int64_t num_chunks, void (*call)(const void *, int64_t), const void *context) {
    Pool &own = pool();
    if (num_chunks <= 1 || !own.busy.try_lock()) {
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) call(context, chunk);
        return;
    }
    const uint32_t piece = own.piece.load(std::memory_order_relaxed) + 1;
    own.call.store(call, std::memory_order_relaxed);
    own.context.store(context, std::memory_order_relaxed);
    own.num_chunks.store(num_chunks, std::memory_order_relaxed);
    own.num_done.store(0, std::memory_order_relaxed);
    own.ticket.store(static_cast<uint64_t>(piece) << 32, std::memory_order_release);
    own.piece.store(piece);
    if (own.num_asleep.load()) own.piece.notify_all();
    work_on(own, piece);
    for (int look = 0; own.num_done.load(std::memory_order_acquire) < num_chunks; ++look) {
        if (look < NUM_LOOKS)
            _mm_pause();
        else
            std::this_thread::yield();
    }
    own.busy.unlock();
}

}  // namespace medley
