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
    unsigned waiting, live;
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

// Runs a cluster's fibers to their ends; 1 if some wait where others never come.
static int run(std::vector<Fiber> &fibers, const std::vector<unsigned> &order) {
    unsigned done = 0;
    const unsigned all = (unsigned)fibers.size();
    while (done < all) {
        bool ran = false;
        for (unsigned i : order) {
            Fiber &f = fibers[i];
            if (f.state != READY) continue;
            current = &f;
            shim_switch(&scheduler_stack, f.stack_pointer);
            ran = true;
            done += f.state == DONE;
        }
        unsigned at_cluster = 0;
        for (Block &b : *cluster) b.waiting = b.live = 0;
        for (Fiber &f : fibers) {
            at_cluster += f.state == AT_CLUSTER;
            f.block->live += f.state != DONE;
            f.block->waiting += f.state == AT_BLOCK;
        }
        for (Fiber &f : fibers) {
            // a barrier that a thread has left for good is undefined in CUDA, so it counts as never reached
            const bool block_there = f.state == AT_BLOCK && f.block->waiting == threads;
            if (block_there || (f.state == AT_CLUSTER && at_cluster == all)) {
                f.state = READY;
                ran = true;
            }
        }
        if (!ran) return 1;
    }
    return 0;
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
            order[i] = order_of == BACKWARDS ? all - 1 - i : i;
        }
        unsigned x = seed * 2654435761u + start + 1;
        for (unsigned i = all - 1; order_of == SHUFFLED && i > 0; --i) {
            x = x * 1664525u + 1013904223u;
            std::swap(order[i], order[(x >> 8) % (i + 1)]);
        }
        rc = run(fibers, order);
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
