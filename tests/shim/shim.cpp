// The kernels, compiled for the host, and the scheduler of their fibers. Built by tests/cuda_host.rs into a library.
#include "shim.h"
#include "../../kernels/fwi.cu"

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <vector>

#ifndef __x86_64__
#error "the fibers switch by x86-64 instructions"
#endif

extern "C" void shim_switch(void **save, void *load);
asm(R"(
.text
.globl shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch, .-shim_switch
)");

namespace shim {

enum State { READY, AT_BLOCK, AT_CLUSTER, DONE };

struct Block {
    unsigned index, rank;
    char *memory;
    int any; // of block_barrier_or
};

struct Fiber {
    void *stack_pointer;
    Block *block;
    unsigned thread;
    State state;
};

typedef void Kernel(Params);

thread_local Fiber *current;
static thread_local void *scheduler_stack;
static thread_local Kernel *kernel;
static thread_local const Params *params;
static thread_local unsigned threads;
static thread_local size_t shared_bytes;
static thread_local std::vector<Block> *cluster;

static const size_t STACK = 64 << 10;
// bytes behind the shared memory that nobody may write
static const size_t GUARD = 256;

static void leave(State why) {
    current->state = why;
    shim_switch(&current->stack_pointer, scheduler_stack);
}

__attribute__((noreturn)) static void entry() {
    kernel(*params);
    leave(DONE);
    abort();
}

Dim thread_index() { return {current->thread}; }
Dim block_index() { return {current->block->index}; }
Dim block_size() { return {threads}; }
char *shared_memory() { return current->block->memory; }
unsigned rank() { return current->block->rank; }
void block_barrier() { leave(AT_BLOCK); }
void cluster_barrier() { leave(AT_CLUSTER); }

int block_barrier_or(int condition) {
    current->block->any |= condition != 0;
    leave(AT_BLOCK);
    const int any = current->block->any;
    leave(AT_BLOCK);
    current->block->any = 0;
    leave(AT_BLOCK);
    return any;
}

void *map_rank(const void *p, unsigned r) {
    const ptrdiff_t offset = (const char *)p - current->block->memory;
    if (offset < 0 || (size_t)offset >= shared_bytes || r >= cluster->size()) abort();
    return (*cluster)[r].memory + offset;
}

// Runs the fibers of a block, in `order`, until all wait for the cluster or are done; 1 if some wait where others never
// come.
static int run_block(Fiber *fibers, const unsigned *order) {
    for (;;) {
        unsigned at_block = 0, at_cluster = 0, done = 0;
        for (unsigned i = 0; i < threads; ++i) {
            Fiber &f = fibers[order[i]];
            if (f.state == READY) {
                current = &f;
                shim_switch(&scheduler_stack, f.stack_pointer);
            }
            at_block += f.state == AT_BLOCK;
            at_cluster += f.state == AT_CLUSTER;
            done += f.state == DONE;
        }
        if (at_cluster + done == threads) return 0;
        // a barrier that a thread has left for good is undefined in CUDA, so it counts as never reached
        if (at_block != threads) return 1;
        for (unsigned i = 0; i < threads; ++i) fibers[i].state = READY;
    }
}

// Runs a cluster's fibers to their ends. Each block runs as far as it can before the next one does, so that blocks
// that ought to wait for each other are as far apart as can be.
static int run(std::vector<Fiber> &fibers, const std::vector<unsigned> &order, const std::vector<unsigned> &blocks) {
    for (;;) {
        for (unsigned b : blocks)
            if (run_block(&fibers[b * threads], &order[b * threads])) return 1;
        size_t at_cluster = 0;
        for (Fiber &f : fibers) at_cluster += f.state == AT_CLUSTER;
        if (at_cluster == 0) return 0;
        if (at_cluster != fibers.size()) return 1;
        for (Fiber &f : fibers) f.state = READY;
    }
}

}

// Runs a kernel; 0, or 1 for a barrier that not all threads reach, 2 for a senseless launch, 3 for writing beyond the
// shared memory that was asked for.
extern "C" int shim_launch(void *function, unsigned blocks, unsigned n, unsigned size, size_t shared, const void *p,
                           int order_of, unsigned seed) {
    using namespace shim;
    if (n == 0 || n > 1024 || size == 0 || blocks % size != 0 || shared > 227 * 1024) return 2;
    kernel = (Kernel *)function;
    params = (const Params *)p;
    threads = n;
    shared_bytes = shared;
    const unsigned all = n * size;
    char *stacks = (char *)mmap(0, all * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return 2;
    std::vector<Fiber> fibers(all);
    std::vector<unsigned> order(all);
    std::vector<Block> resident(size);
    for (Block &b : resident) b.memory = (char *)aligned_alloc(128, (shared + GUARD + 127) / 128 * 128);
    cluster = &resident;
    int rc = 0;
    for (unsigned first = 0; first < blocks && rc == 0; first += size) {
        const unsigned start = order_of == BACKWARDS ? blocks - size - first : first;
        for (unsigned r = 0; r < size; ++r) {
            resident[r].index = start + r;
            resident[r].rank = r;
            resident[r].any = 0;
            memset(resident[r].memory, 0xff, shared);
            memset(resident[r].memory + shared, 0x5a, GUARD);
        }
        for (unsigned i = 0; i < all; ++i) {
            // tops are staggered, else all stacks would share a few cache sets
            void **top = (void **)(stacks + (i + 1) * STACK - 64 - i * 448 % 8192);
            *--top = nullptr;
            *--top = (void *)entry;
            for (int k = 0; k < 6; ++k) *--top = nullptr;
            fibers[i] = {top, &resident[i / n], i % n, READY};
            order[i] = order_of == BACKWARDS ? n - 1 - i % n : i % n;
        }
        unsigned x = seed * 2654435761u + start + 1;
        const auto shuffle = [&x](unsigned *list, unsigned length) {
            for (unsigned i = length - 1; i > 0; --i) {
                x = x * 1664525u + 1013904223u;
                std::swap(list[i], list[(x >> 8) % (i + 1)]);
            }
        };
        std::vector<unsigned> turns(size);
        for (unsigned r = 0; r < size; ++r) turns[r] = order_of == BACKWARDS ? size - 1 - r : r;
        if (order_of == SHUFFLED) {
            shuffle(turns.data(), size);
            for (unsigned r = 0; r < size; ++r) shuffle(&order[r * n], n);
        }
        rc = run(fibers, order, turns);
        for (Block &b : resident)
            for (size_t i = 0; i < GUARD; ++i)
                if (b.memory[shared + i] != 0x5a) rc = 3;
    }
    for (Block &b : resident) free(b.memory);
    munmap(stacks, all * STACK);
    return rc;
}

// Bytes of the parameters, which the caller's own struct must match.
extern "C" unsigned long shim_params_size() { return sizeof(Params); }
