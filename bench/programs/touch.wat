;; touch: stores one word on each 4 KiB page of fresh memory but the first 64 KiB, and prints the nanoseconds before and
;; after as two little-endian words. INDEX is i32 or i64, PAGES the memory's size in 64 KiB, BYTES the same in bytes.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") INDEX PAGES)
  (func (export "_start") (local $at INDEX)
    (local.set $at (INDEX.const 65536))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 16)))
    (loop $next
      (i64.store (local.get $at) (i64.const 1))
      (local.set $at (INDEX.add (local.get $at) (INDEX.const 4096)))
      (br_if $next (INDEX.lt_u (local.get $at) (INDEX.const BYTES))))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 24)))
    (i32.store (INDEX.const 0) (i32.const 16))
    (i32.store (INDEX.const 4) (i32.const 16))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
