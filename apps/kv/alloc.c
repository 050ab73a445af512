// alloc.c: size classes and runs of pages, as declared in alloc.h. A table with one descriptor per 16-KiB page says what
// each page is part of, so a piece has no header of its own. Free runs are kept in bins by the logarithm of their length
// and are merged with their neighbours. Memory that was got once is never given back to the system (Wasm has no way to).
#include "alloc.h"

#ifdef __wasm__
#define ARENA_BYTES (UINT64_C(65535) << 16)  // the last 64 KiB stay unused: no piece ends at the address 2^32
#else
#include <sys/mman.h>
#define ARENA_BYTES (UINT64_C(32) << 30)  // what a Ref reaches
char *mem_base;
#endif

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

#define PAGE_SHIFT 14
#define PAGE ((size_t)1 << PAGE_SHIFT)
#define PAGES ((ARENA_BYTES + (UINT64_C(1) << 16)) >> PAGE_SHIFT)
#define SYSTEM_PAGES 4u  // the system gives memory in units of 64 KiB
#define MAX_SMALL 65536u
#define MAX_SMALL_CONN 8192u  // buffers come and go: no spans of large classes for them
#define CLASSES 64u
#define BINS 22u
#define RESERVE_PAGES 128u  // 2 MiB that only connections may use
#define STEP_MIN 64u       // pages asked for at once: 1 MiB, then a sixteenth of what there is, at most 32 MiB
#define STEP_MAX 2048u
#define TRIES 16u  // free runs looked at in the one bin that may hold too short ones

enum { KIND_FOREIGN, KIND_FREE, KIND_SMALL, KIND_LARGE };

typedef struct {
    uint8_t kind;
    uint8_t class;
    uint8_t heap;
    uint8_t back;    // pages to the first one of the span
    uint16_t used;   // pieces given out
    uint16_t carved; // pieces that were ever given out; the rest of the span is untouched
    uint32_t free;   // small: first free piece (Ref). free and large: pages of the run
    uint32_t next;   // spans with room of the same class, or free runs of the same bin
    uint32_t prev;
} Page;

static Page pages[PAGES];
static uint32_t bins[BINS];
static uint32_t partial[HEAP_COUNT][CLASSES];
static uint32_t class_bytes[CLASSES], class_pieces[CLASSES], class_pages[CLASSES];
static uint8_t class_by_words[1024 / 8 + 1];
static uint32_t first_page, top_page, limit_page, free_pages;
static uint64_t used_bytes[HEAP_COUNT], system_bytes;

static inline char *address(uint32_t page) {
#ifdef __wasm__
    return (char *)((size_t)page << PAGE_SHIFT);
#else
    return mem_base + ((size_t)page << PAGE_SHIFT);
#endif
}

static inline uint32_t page_of(const void *p) {
#ifdef __wasm__
    return (uint32_t)((size_t)p >> PAGE_SHIFT);
#else
    return (uint32_t)((size_t)((const char *)p - mem_base) >> PAGE_SHIFT);
#endif
}

static inline unsigned log2_of(uint32_t n) {
    return 31u - (unsigned)__builtin_clz(n);
}

static void list_push(uint32_t *list, uint32_t page) {
    pages[page].prev = 0;
    pages[page].next = *list;
    if (*list) pages[*list].prev = page;
    *list = page;
}

static void list_remove(uint32_t *list, uint32_t page) {
    uint32_t next = pages[page].next, prev = pages[page].prev;
    if (next) pages[next].prev = prev;
    if (prev) {
        pages[prev].next = next;
    } else {
        *list = next;
    }
}

static void mark_ends(uint32_t start, uint32_t count, uint8_t kind) {
    pages[start].kind = kind;
    pages[start].free = count;
    pages[start + count - 1].kind = kind;
    pages[start + count - 1].free = count;
}

static void release_run(uint32_t start, uint32_t count) {
    POISON(address(start), (size_t)count << PAGE_SHIFT);
    free_pages += count;
    if (start > first_page && pages[start - 1].kind == KIND_FREE) {
        uint32_t before = pages[start - 1].free;
        start -= before;
        count += before;
        list_remove(&bins[log2_of(before)], start);
    }
    uint32_t after = start + count;
    if (after < top_page && pages[after].kind == KIND_FREE) {
        list_remove(&bins[log2_of(pages[after].free)], after);
        count += pages[after].free;
    }
    mark_ends(start, count, KIND_FREE);
    list_push(&bins[log2_of(count)], start);
}

// The page number of fresh memory, or 0.
static uint32_t system_grow(uint32_t count) {
#ifdef __wasm__
    size_t old = __builtin_wasm_memory_size(0);
    if ((uint64_t)(old << 16) + ((uint64_t)count << PAGE_SHIFT) > ARENA_BYTES) return 0;
    old = __builtin_wasm_memory_grow(0, count / SYSTEM_PAGES);
    return old == SIZE_MAX ? 0 : (uint32_t)(old * SYSTEM_PAGES);
#else
    return (uint64_t)(top_page + count) << PAGE_SHIFT <= ARENA_BYTES ? top_page : 0;
#endif
}

// Gets memory for a run of `count` pages from the system, and more than that if it can be had.
static bool grow(uint32_t count) {
    uint32_t have = (uint32_t)(system_bytes >> PAGE_SHIFT);
    uint32_t step = have / 16 < STEP_MIN ? STEP_MIN : have / 16 > STEP_MAX ? STEP_MAX : have / 16;
    count = (count + SYSTEM_PAGES - 1) / SYSTEM_PAGES * SYSTEM_PAGES;
    if (step < count) step = count;
    step = step / SYSTEM_PAGES * SYSTEM_PAGES;
    uint32_t start = 0;
    for (;;) {
        if (have + step <= limit_page) start = system_grow(step);
        if (start || step == count) break;
        step = count;
    }
    if (!start) return false;
    if (!first_page) first_page = start;
    top_page = start + step;
    system_bytes += (uint64_t)step << PAGE_SHIFT;
    release_run(start, step);
    return true;
}

static uint32_t find_run(uint32_t count) {
    unsigned bin = log2_of(count), tries = TRIES;
    for (uint32_t page = bins[bin]; page && tries; page = pages[page].next, tries--) {
        if (pages[page].free >= count) return page;
    }
    for (bin++; bin < BINS; bin++) {
        if (bins[bin]) return bins[bin];
    }
    return 0;
}

// Gives up the empty spans that classes have kept; whether there were any.
static bool trim(void) {
    bool any = false;
    for (unsigned i = 0; i < HEAP_COUNT * CLASSES; i++) {
        uint32_t *list = &partial[i / CLASSES][i % CLASSES], start = *list;
        while (start && pages[start].used) start = pages[start].next;
        if (!start) continue;
        list_remove(list, start);
        release_run(start, class_pages[i % CLASSES]);
        any = true;
    }
    return any;
}

// The first page of a run of `count`, or 0.
static uint32_t take_run(Heap heap, uint32_t count) {
    uint32_t spare = heap == HEAP_STORE ? RESERVE_PAGES : 0;
    while (free_pages < count + spare) {
        if (!grow(count) && !trim()) return 0;
    }
    uint32_t start = find_run(count);
    if (!start && (grow(count) || trim())) start = find_run(count);
    if (!start) return 0;
    uint32_t length = pages[start].free;
    list_remove(&bins[log2_of(length)], start);
    free_pages -= count;
    if (length > count) {
        mark_ends(start + count, length - count, KIND_FREE);
        list_push(&bins[log2_of(length - count)], start + count);
    }
    return start;
}

bool mem_init(uint64_t limit) {
#ifndef __wasm__
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *arena = mmap(NULL, ARENA_BYTES + MAX_SMALL, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (arena == MAP_FAILED) return false;
    mem_base = (char *)(((size_t)arena + MAX_SMALL - 1) / MAX_SMALL * MAX_SMALL);
    top_page = SYSTEM_PAGES;  // so that no piece has the Ref 0
#endif
    if (!limit || limit > ARENA_BYTES) limit = ARENA_BYTES;
    limit_page = (uint32_t)(limit >> PAGE_SHIFT);
    uint32_t class = 0, bytes = 0;
    while (class < CLASSES) {
        uint32_t step = bytes < 128 ? 8 : bytes < 1024 ? (1u << log2_of(bytes)) / 8 : (1u << log2_of(bytes)) / 4;
        bytes += step;
        class_bytes[class] = bytes;
        class_pages[class] = bytes <= 1024 ? 4 : bytes <= 8192 ? 8 : 16;
        class_pieces[class] = (uint32_t)((class_pages[class] << PAGE_SHIFT) / bytes);
        for (uint32_t size = bytes - step + 8; size <= bytes && size <= 1024; size += 8) {
            class_by_words[size / 8] = (uint8_t)class;
        }
        class++;
    }
    return grow(RESERVE_PAGES);
}

static inline unsigned class_for(size_t bytes) {
    if (likely(bytes <= 1024)) return class_by_words[(bytes + 7) / 8];
    unsigned power = log2_of((uint32_t)bytes - 1);  // 2^power < bytes <= 2^(power + 1)
    return 40 + (power - 10) * 4 + (((uint32_t)bytes - 1) >> (power - 2)) - 4;
}

static inline size_t max_small(Heap heap) {
    return heap == HEAP_STORE ? MAX_SMALL : MAX_SMALL_CONN;
}

static inline size_t rounded(Heap heap, size_t bytes) {
    if (bytes > max_small(heap)) return (bytes + PAGE - 1) / PAGE * PAGE;
    return class_bytes[class_for(bytes)];
}

static uint32_t new_span(Heap heap, unsigned class) {
    uint32_t count = class_pages[class], start = take_run(heap, count);
    if (!start) return 0;
    for (uint32_t i = 0; i < count; i++) {
        pages[start + i] = (Page){.kind = KIND_SMALL, .class = (uint8_t)class, .heap = heap, .back = (uint8_t)i};
    }
    list_push(&partial[heap][class], start);
    return start;
}

static void *alloc_large(Heap heap, size_t bytes) {
    if (bytes > ARENA_BYTES) return NULL;
    uint32_t count = (uint32_t)((bytes + PAGE - 1) >> PAGE_SHIFT), start = take_run(heap, count);
    if (!start) return NULL;
    mark_ends(start, count, KIND_LARGE);
    pages[start].heap = heap;
    pages[start].back = 0;
    used_bytes[heap] += (uint64_t)count << PAGE_SHIFT;
    UNPOISON(address(start), (size_t)count << PAGE_SHIFT);
    return address(start);
}

void *mem_alloc(Heap heap, size_t bytes) {
    if (unlikely(bytes > max_small(heap))) return alloc_large(heap, bytes);
    unsigned class = class_for(bytes);
    uint32_t start = partial[heap][class];
    if (unlikely(!start) && !(start = new_span(heap, class))) return NULL;
    Page *page = &pages[start];
    uint32_t size = class_bytes[class];
    char *p;
    if (page->free) {
        p = at(page->free);
        UNPOISON(p, size);
        page->free = load32(p);
    } else {
        p = address(start) + (size_t)page->carved++ * size;
        UNPOISON(p, size);
    }
    if (unlikely(++page->used == class_pieces[class])) list_remove(&partial[heap][class], start);
    used_bytes[heap] += size;
    return p;
}

void mem_free(void *p) {
    if (!p) return;
    uint32_t number = page_of(p);
    Page *page = &pages[number];
    if (unlikely(page->kind == KIND_LARGE)) {
        used_bytes[page->heap] -= (uint64_t)page->free << PAGE_SHIFT;
        release_run(number, page->free);
        return;
    }
    number -= page->back;
    page = &pages[number];
    unsigned class = page->class;
    uint32_t *list = &partial[page->heap][class];
    used_bytes[page->heap] -= class_bytes[class];
    store32(p, page->free);
    POISON(p, class_bytes[class]);
    page->free = ref_of(p);
    if (unlikely(page->used-- == class_pieces[class])) list_push(list, number);
    // The last span with room of its class stays, or a piece that comes and goes would make and break it every time.
    if (unlikely(page->used == 0) && (*list != number || page->next)) {
        list_remove(list, number);
        release_run(number, class_pages[class]);
    }
}

size_t mem_usable(const void *p) {
    const Page *page = &pages[page_of(p)];
    return page->kind == KIND_LARGE ? (size_t)page->free << PAGE_SHIFT : class_bytes[page->class];
}

size_t mem_rounded(size_t bytes) {
    return rounded(HEAP_STORE, bytes);
}

// Changes the length of a large piece where it lies, into the free run behind it if need be.
static bool resize_large(uint32_t start, size_t bytes) {
    if (bytes > ARENA_BYTES) return false;
    uint32_t have = pages[start].free, count = (uint32_t)((bytes + PAGE - 1) >> PAGE_SHIFT), after = start + have;
    Heap heap = pages[start].heap;
    if (count > have) {
        uint32_t more = count - have, spare = heap == HEAP_STORE ? RESERVE_PAGES : 0;
        if (after == top_page && !grow(more + spare)) return false;
        uint32_t room = after < top_page && pages[after].kind == KIND_FREE ? pages[after].free : 0;
        if (room < more || free_pages < more + spare) return false;
        list_remove(&bins[log2_of(room)], after);
        free_pages -= more;
        if (room > more) {
            mark_ends(after + more, room - more, KIND_FREE);
            list_push(&bins[log2_of(room - more)], after + more);
        }
        UNPOISON(address(after), (size_t)more << PAGE_SHIFT);
    }
    mark_ends(start, count, KIND_LARGE);
    used_bytes[heap] += (uint64_t)count << PAGE_SHIFT;
    used_bytes[heap] -= (uint64_t)have << PAGE_SHIFT;
    if (count < have) release_run(start + count, have - count);
    return true;
}

void *mem_resize(Heap heap, void *p, size_t bytes) {
    if (!p) return mem_alloc(heap, bytes);
    size_t old = mem_usable(p);
    if (rounded(heap, bytes) == old) return p;
    if (old > max_small(heap) && bytes > max_small(heap) && resize_large(page_of(p), bytes)) return p;
    void *fresh = mem_alloc(heap, bytes);
    if (!fresh) return NULL;
    copy_bytes(fresh, p, old < bytes ? old : bytes);
    mem_free(p);
    return fresh;
}

void mem_drop(Heap heap) {
    uint32_t number = first_page;
    while (number < top_page) {
        Page *page = &pages[number];
        uint32_t count = page->kind == KIND_FOREIGN ? 1 : page->kind == KIND_SMALL ? class_pages[page->class] : page->free;
        bool ours = (page->kind == KIND_SMALL || page->kind == KIND_LARGE) && page->heap == heap;
        uint32_t after = number + count;
        // A free run behind it is passed over now: releasing merges the two.
        if (ours && after < top_page && pages[after].kind == KIND_FREE) after += pages[after].free;
        if (ours) release_run(number, count);
        number = after;
    }
    memset(partial[heap], 0, sizeof partial[heap]);
    used_bytes[heap] = 0;
}

uint64_t mem_used(void) {
    return used_bytes[HEAP_STORE] + used_bytes[HEAP_CONN];
}

uint64_t mem_of_heap(Heap heap) {
    return used_bytes[heap];
}

uint64_t mem_footprint(void) {
    return system_bytes;
}
