// alloc.h: the store's memory. Small pieces come from spans of one size class each, large ones are runs of pages; a span
// that has become empty can serve any other class. Two heaps share the pages: the keys, and everything about
// connections, which may also use a reserve that keys never touch: a full store can still answer that it is full.
// Nothing here ever aborts: NULL means that the memory is used up.
#ifndef KV_ALLOC_H
#define KV_ALLOC_H

#include "base.h"

typedef enum { HEAP_STORE, HEAP_CONN, HEAP_COUNT } Heap;

// A piece of memory in 32 bits, on 64-bit machines too; 0 is none.
typedef uint32_t Ref;

#ifdef __wasm__
static inline void *at(Ref ref) {
    return (void *)ref;
}
static inline Ref ref_of(const void *p) {
    return (Ref)p;
}
#else
extern char *mem_base;
static inline void *at(Ref ref) {
    return mem_base + ((size_t)ref << 3);
}
static inline Ref ref_of(const void *p) {
    return (Ref)((size_t)((const char *)p - mem_base) >> 3);
}
#endif

// Sets the heaps up; `limit` bytes (0: as many as there are) is all they may ever get from the system.
bool mem_init(uint64_t limit);

// At least `bytes`, aligned to 8 (to 64 if that divides `bytes`), not cleared.
void *mem_alloc(Heap heap, size_t bytes);
void mem_free(void *p);

// As realloc; NULL leaves the old piece as it is.
void *mem_resize(Heap heap, void *p, size_t bytes);

// Bytes that the piece really has; bytes that mem_alloc would give for a wish of the store.
size_t mem_usable(const void *p);
size_t mem_rounded(size_t bytes);

// Gives back everything of one heap at once, in time proportional to pages, not to pieces.
void mem_drop(Heap heap);

// Bytes in pieces that are given out, and bytes that were got from the system.
uint64_t mem_used(void);
uint64_t mem_of_heap(Heap heap);
uint64_t mem_footprint(void);

#endif
