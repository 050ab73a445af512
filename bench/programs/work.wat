;; work: ROUNDS times a chain of ITERATIONS multiplications, each time followed by a sleep of PAUSE nanoseconds (none if it is
;; 0); prints its 8-byte checksum. With POLL of 1 it looks at the clock until the pause is over instead of sleeping.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $now (result i64)
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 512)))
    (i64.load (i32.const 512)))
  (func $pause (local $until i64)
    (if (i32.const POLL)
      (then
        (local.set $until (i64.add (call $now) (i64.const PAUSE)))
        (loop $again (br_if $again (i64.lt_u (call $now) (local.get $until)))))
      (else
        ;; A subscription to the monotonic clock: userdata 0, tag clock, relative timeout.
        (i32.store (i32.const 80) (i32.const 1))
        (i64.store (i32.const 88) (i64.const PAUSE))
        (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 256))))))
  (func (export "_start") (local $x i64) (local $left i32) (local $rounds i32)
    (local.set $x (i64.const 42))
    (local.set $rounds (i32.const ROUNDS))
    (loop $round
      (local.set $left (i32.const ITERATIONS))
      (loop $next
        (local.set $x
          (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
        (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
      (if (i64.ne (i64.const PAUSE) (i64.const 0)) (then (call $pause)))
      (br_if $round (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1)))))
    (i64.store (i32.const 16) (local.get $x))
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
