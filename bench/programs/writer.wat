;; writer: touches each 4 KiB page of its memory but the first 64 KiB, then writes RATE words a second for ever, each on some page of it, and after
;; a millisecond's worth at most (SLICE) prints how many it has written (8 bytes, little-endian), also while it makes up for lost time. RATE 0: as
;; many as it can. What it is late by more than 50 ms is never made up for. INDEX is i32 or i64, PAGES the memory's size in 64 KiB, SPREAD its 4 KiB pages but the first 16.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") INDEX PAGES)
  (global $random (mut i64) (i64.const 42))
  (func $now (result i64)
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 16)))
    (i64.load (INDEX.const 16)))
  ;; One word on some page: the high bits of a linear congruential generator choose it.
  (func $store
    (global.set $random
      (i64.add (i64.mul (global.get $random) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
    (i64.store
      (INDEX.add (INDEX.const 65536) (INDEX.mul (INDEX.const 4096)
        (NARROW (i64.shr_u (i64.mul (i64.shr_u (global.get $random) (i64.const 32)) (i64.const SPREAD)) (i64.const 32)))))
      (global.get $random)))
  (func (export "_start") (local $at INDEX) (local $count i64) (local $due i64) (local $begin i64) (local $burst i64) (local $late i32)
    (local.set $at (INDEX.const 65536))
    (loop $next
      (i64.store (local.get $at) (i64.const 1))
      (local.set $at (INDEX.add (local.get $at) (INDEX.const 4096)))
      (br_if $next (INDEX.lt_u (local.get $at) (INDEX.const BYTES))))
    (i32.store (INDEX.const 0) (i32.const 24))
    (i32.store (INDEX.const 4) (i32.const 8))
    ;; A subscription at 64: the monotonic clock (id 1), a relative timeout of 0.5 ms.
    (i32.store (INDEX.const 80) (i32.const 1))
    (i64.store (INDEX.const 88) (i64.const 500000))
    (local.set $begin (call $now))
    (loop $again
      (if (i64.eqz (i64.const RATE))
        (then (local.set $burst (i64.const 5000)))
        (else
          (local.set $due (i64.div_u (i64.mul (i64.sub (call $now) (local.get $begin)) (i64.const RATE)) (i64.const 1000000000)))
          (local.set $burst (i64.sub (local.get $due) (local.get $count)))
          (if (i64.gt_s (local.get $burst) (i64.const LATE))
            (then
              ;; Too late for these: as if they had been due later.
              (local.set $begin (call $now))
              (local.set $begin (i64.sub (local.get $begin)
                (i64.div_u (i64.mul (local.get $count) (i64.const 1000000000)) (i64.const RATE))))
              (local.set $burst (i64.const 0))))
          (local.set $late (i64.gt_s (local.get $burst) (i64.const SLICE)))
          (if (local.get $late) (then (local.set $burst (i64.const SLICE))))))
      (if (i64.gt_s (local.get $burst) (i64.const 0))
        (then
          (local.set $count (i64.add (local.get $count) (local.get $burst)))
          (loop $more
            (call $store)
            (br_if $more (i64.gt_s (local.tee $burst (i64.sub (local.get $burst) (i64.const 1))) (i64.const 0))))
          (i64.store (INDEX.const 24) (local.get $count))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
      (if (i32.and (i64.ne (i64.const RATE) (i64.const 0)) (i32.eqz (local.get $late)))
        (then (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 192)))))
      (br $again))))
